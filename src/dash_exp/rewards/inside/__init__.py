"""What runs inside a sandbox.

`start` is the program of both processes: the `candidate`, which runs the program of a completion, and the `judge`, which runs
the tests and decides (`arrays`: how it compares arrays). `wire` is what they say to each other.

Nothing else of this package exists inside, and no file of it: a process gets the code of these modules from
`dash_exp.rewards.sandbox`, the outside. So they import each other and the standard library only, and little of that, so that a
process starts in a few milliseconds.
"""
