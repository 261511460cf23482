"""Time to a target accuracy."""

from __future__ import annotations

import math

from dash_exp.report import comparison
from dash_exp.report.document import Cell, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import (
    percent,
    seconds,
    whole,
)
from dash_exp.results.cells import AXES


def section(c: Context) -> Section:
    """A table of the first evaluation at or above the target."""
    title = "Time to a target accuracy"
    if c.target is None:
        said = (
            "There is no target. None was given, and none can be derived if the baseline is not better than the base model "
            "or if the arms have different baselines. To set one, add target=0.9 to the command line."
        )
        return Section("target", "Target", title, [Paragraph(said)])
    rows = []
    for arm in c.results.arms:
        found = comparison.reach(c.results, arm, c.target.value)
        never = "median not reached" if found.reached else "not reached"
        shown = [
            (seconds if axis == "seconds" else whole)(at) if math.isfinite(at := found.median[axis]) else never for axis in AXES
        ]
        rows.append([c.named(arm), Cell(f"{found.reached} of {found.n} seeds"), *map(Cell, shown)])
    median = ": the median over seeds, where a seed that never reaches the target counts as infinite"
    note = (
        f"Target: {percent(c.target.value)}% in distribution, {c.target.why}. The table shows the first evaluation at or above "
        f"the target{median if c.several_seeds else ''}."
    )
    return Section("target", "Target", title, [Paragraph(note), Table(["arm", "reached by", *AXES.values()], rows, words=1)])
