"""A rank beside the first of `limit.py`, which starts it: the same outer steps."""

import limit

from dash_exp.commands import rank

if __name__ == "__main__":
    rank.main(limit.outer_steps)
