"""The record of finished runs: the files of run folders, cells and arms, statistics, summaries, curves, and W&B. May import
`core`, `settings`.

    from dash_exp import results
    results.load(["multirun/NAME"]).table()
"""

from dash_exp.results.cells import Cell, Results, load

__all__ = ["Cell", "Results", "load"]
