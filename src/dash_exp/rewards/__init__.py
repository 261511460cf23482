"""A problem and a completion in, a number out: a file per reward, with the graders and the sandbox they need. May import
`core`, `models`."""
