"""What runs inside a sandbox.

`start` is the program of both processes: the `candidate`, which runs the program of a completion, and the `judge`, which runs
the tests and decides (`arrays`: how it compares arrays). `wire` is what they say to each other.

Only this folder of the package exists inside a sandbox, where `python -I -S` finds no packages: these files import each other
and the standard library, and little of that, so that a process starts in a few milliseconds. `dash_exp.rewards.sandbox` is the
outside.
"""
