"""What is measured on a test set: greedy accuracy, pass@k, avg@n, maj@n, each with its interval. May import `core`,
`rewards`, `sampling`."""
