"""Time to a target accuracy: which accuracy is the target, and when each arm reached it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dash_exp.report.comparison.arms import BASE, by_seed, of_base, over_seeds
from dash_exp.results.cells import AXES, Cell, Results

SHARE = 0.95  # of the baseline's gain: the accuracy to reach where no target is given


@dataclass(frozen=True)
class Target:
    """An accuracy in distribution, and the reason for it as text."""

    value: float
    why: str


@dataclass(frozen=True)
class Reach:
    """How many of an arm's n done cells reached the target, and the median of each axis (infinity: median not reached)."""

    arm: str
    n: int
    reached: int
    median: dict[str, float]


def choose_target(results: Results, baseline: str | None, wanted: float | None) -> Target | None:
    """The accuracy given by the user or the sweep, else 95% of the way from the base model to the baseline.

    None if the baseline is not better than the base model, or if the arms have different baselines.
    """
    if wanted is not None:
        return Target(wanted, "given on the command line")
    if results.study.get("target") is not None:
        return Target(float(results.study["target"]), "given by the sweep (study.target)")
    if baseline is not None and len({results.baseline_of(arm, baseline) for arm in results.arms}) > 1:
        return None  # the large model may start above where the small one ends
    finals = {arm: over_seeds(results, arm, "accuracy/in_dist/final") for arm in results.arms}
    known = {arm: e.value for arm, e in finals.items() if e is not None}
    if baseline == BASE and known:
        name = max(known, key=lambda arm: known[arm])
    elif baseline in known:
        name = str(baseline)
    else:
        return None
    base = of_base(results, "accuracy/in_dist", name)
    if base is None or known[name] <= base.value:
        return None
    value = base.value + SHARE * (known[name] - base.value)
    return Target(value, f"{SHARE:.0%} of the way from the base model to the final accuracy of {name}")


def first_reached(cell: Cell, target: float) -> dict[str, float] | None:
    """The value of each axis at the first evaluation at or above the target; None if there is none."""
    if cell.metrics.empty or "accuracy/in_dist" not in cell.metrics:
        return None
    rows = cell.metrics[cell.metrics["accuracy/in_dist"] >= target - 1e-9]
    return None if rows.empty else {axis: float(rows.iloc[0][axis]) for axis in AXES if axis in rows}


def reach(results: Results, arm: str, target: float) -> Reach:
    """When the done cells of an arm reached the target. A cell that did not reach it counts as infinitely late."""
    cells = list(by_seed(results, arm).values())
    found = [first_reached(cell, target) for cell in cells]
    at = [f or {} for f in found]
    median = {axis: float(np.median([f.get(axis, math.inf) for f in at])) if at else math.inf for axis in AXES}
    return Reach(arm, len(cells), sum(f is not None for f in found), median)
