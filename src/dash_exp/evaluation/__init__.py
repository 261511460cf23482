"""What is measured on a test set: greedy accuracy, pass@k, avg@n, maj@n, each with its 95% interval. May import `core`,
`distributed`, `models`, `rewards` and `sampling`.

`measures` has the formulas, `evaluator` samples and grades.
"""
