"""The numbers of a comparison: means over seeds, paired differences, time to a target accuracy, curves. No text, no drawing.

A seed pairs the cells of two arms: both had the same problems and the same noise. Fractions stay fractions. The base model
(row 0 of every run) is available as an arm named `base` where a function says so.
"""

from dash_exp.report.comparison.arms import (
    BASE,
    SKIPPED,
    by_seed,
    choose_baseline,
    first_fired,
    number,
    of_base,
    over_seeds,
    pass_at_k,
    phases,
    several_models,
    watched,
)
from dash_exp.report.comparison.claims import Verdict, judged, verdicts
from dash_exp.report.comparison.curves import Curve, curve, learns_from_traces, mean_line
from dash_exp.report.comparison.differences import Difference, difference, differences, relative_change, solved, time_ratio
from dash_exp.report.comparison.targets import Reach, Target, choose_target, reach

__all__ = [
    "BASE",
    "SKIPPED",
    "Curve",
    "Difference",
    "Reach",
    "Target",
    "Verdict",
    "by_seed",
    "choose_baseline",
    "choose_target",
    "curve",
    "difference",
    "differences",
    "first_fired",
    "judged",
    "learns_from_traces",
    "mean_line",
    "number",
    "of_base",
    "over_seeds",
    "pass_at_k",
    "phases",
    "reach",
    "relative_change",
    "several_models",
    "solved",
    "time_ratio",
    "verdicts",
    "watched",
]
