"""Controlled RL-for-reasoning experiments: DASH and the arms it is compared with (arXiv 2505.17218)."""
