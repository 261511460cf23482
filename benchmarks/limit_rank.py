"""The other ranks of `limit.py`, which starts them: they run the same outer steps."""

import limit

from dash_exp.commands import rank

if __name__ == "__main__":
    rank.main(limit.outer_steps)
