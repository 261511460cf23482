"""Records of runs: the files of run folders, cells and arms, statistics, summaries, curves, and trackers. May import `core`,
`settings`.

For notebooks and scripts:

    from dash_exp import results

    sweep = results.load(["multirun/NAME"])  # Results
    sweep.table()                            # a DataFrame: one row per cell, every number of its result.json
    sweep.arms                               # the names of the arms
    sweep.of_arm("dash")[0].metrics          # a DataFrame: one row per outer step of one run
"""

from dash_exp.results.cells import AXES, Cell, Results, load

__all__ = ["AXES", "Cell", "Results", "load"]
