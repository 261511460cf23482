"""Data sets as lists of `Problem`: a file per data set, each with a loader of one split; `rows` reads JSON lines and the hub,
`order` says which problems an outer step takes. May import `core` and `rewards` (for reading an answer out of a solution)."""
