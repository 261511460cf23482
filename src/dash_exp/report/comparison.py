"""Results -> the numbers of a comparison: means over seeds, paired differences, time to a target, curves.

Nothing is worded or drawn here. A seed pairs the cells of two arms: they met the same problems and the same noise. Fractions
stay fractions. The base model, row 0 of every run, is an arm of its own under the name `base` where it says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import PHASES
from dash_exp.core.watch import CHECKS
from dash_exp.results import stats
from dash_exp.results.cells import AXES, Cell, Results
from dash_exp.results.stats import Estimate

BASE = "base"
SHARE = 0.95  # of the baseline's gain: the accuracy to reach where no target is given
GRID = 200  # points of a mean curve, at most
# Metrics of the completions that are learned from, which a policy that learns from written traces did not sample.
OF_COMPLETIONS = ("reward/", "length/", "advantage/", "filter/")
SKIPPED = "optimizer/skipped_steps"
Seed = int | None
Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y


# --- cells and their numbers -------------------------------------------------------------------------------------------


def by_seed(results: Results, arm: str) -> dict[Seed, Cell]:
    """The done cells of an arm. Of two with the same seed the later one counts."""
    return {cell.seed: cell for cell in results.of_arm(arm)}


def per_seed(results: Results, arm: str, key: str) -> dict[Seed, float]:
    """A number of `result.json` by seed, from the done cells that have it. `kept` is the kept fraction of the completions."""
    found = {seed: _number(cell, key) for seed, cell in by_seed(results, arm).items()}
    return {seed: value for seed, value in found.items() if value is not None}


def over_seeds(results: Results, arm: str, key: str) -> Estimate | None:
    """Its mean over the done cells of an arm, with the interval over seeds."""
    return stats.mean_interval(list(per_seed(results, arm, key).values()))


def of_base(results: Results, key: str, arm: str | None = None) -> Estimate | None:
    """What `result.json` says of the base model (`KEY/base`): its mean over all cells, or over those of an arm.

    None where the arms are asked together and started from different models.
    """
    if arm is None and several_models(results):
        return None
    cells = results.cells if arm is None else results.of_arm(arm, None)
    return stats.mean_interval([value for cell in cells if (value := _number(cell, f"{key}/base")) is not None])


def several_models(results: Results) -> bool:
    """Whether the cells started from more than one model, as in a sweep over its size."""
    models = (cell.config["model"] for cell in results.cells if cell.config.get("model"))
    return len({(str(model.get("path")), str(model.get("architecture"))) for model in models}) > 1


def _number(cell: Cell, key: str) -> float | None:
    if key == "kept":
        kept, sampled = cell.result.get("completions/kept"), cell.result.get("completions/sampled")
        return kept / sampled if sampled and kept is not None else None
    value = cell.result.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def choose_baseline(results: Results, wanted: str | None) -> str | None:
    """The arm of that name, of the sweep's study, or the first; the base model where there is one arm alone. None: no cells.

    Raises UserError for a name that no arm has, or that several begin with.
    """
    if wanted is None:
        only = len(results.arms) == 1 and not results.study.get("baseline")
        return BASE if only else results.baseline
    if wanted == BASE or wanted in results.arms:
        return wanted
    begin = [arm for arm in results.arms if arm.split(", ")[0] == wanted]
    if len(begin) == 1:
        return begin[0]
    wrong = "is the beginning of several arms" if begin else "is no arm"
    choices = "; ".join(f'"baseline={arm}"' for arm in [*(begin or results.arms), *([] if begin else [BASE])])
    raise UserError(f"baseline={wanted}", wrong, f"Use one of {choices}")


def watched(results: Results, arm: str) -> dict[str, int]:
    """In how many outer steps each check of the watch fired, summed over all cells of an arm, done or not; and, under
    `optimizer/skipped_steps`, how many optimizer steps were left out. {} of runs that were not watched.
    """
    cells = [cell.result for cell in results.of_arm(arm, None) if any(f"watch/{name}" in cell.result for name in CHECKS)]
    keys = {**{name: f"watch/{name}" for name in CHECKS}, SKIPPED: SKIPPED}
    return {name: sum(int(result.get(key) or 0) for result in cells) for name, key in keys.items()} if cells else {}


# --- paired differences ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Final accuracy of an arm less that of the baseline, on one test set, as a fraction.

    `over_seeds` and `over_problems` are the same mean with the two intervals (and the same problems). `p` is of the paired t
    test over seeds, `p_holm` corrected over the arms; `detectable` is the smallest effect that so many seeds could show.
    """

    arm: str
    test: str
    over_seeds: Estimate | None
    over_problems: Estimate | None
    p: float | None
    detectable: float | None
    p_holm: float | None = None


def differences(results: Results, baseline: str, test: str, arms: Sequence[str] | None = None) -> list[Difference]:
    """Every arm (or those) against the baseline; `base` compares each with the model that it started from."""
    compared = [arm for arm in arms or results.arms if arm != results.baseline_of(arm, baseline)]
    found = [difference(results, arm, baseline, test, len(compared)) for arm in compared]
    corrected = stats.holm([d.p for d in found])
    return [replace(d, p_holm=p) for d, p in zip(found, corrected, strict=True)]


def difference(results: Results, arm: str, baseline: str, test: str, comparisons: int = 1) -> Difference:
    """One arm against its baseline (`Results.baseline_of`), by the seeds that are done in both."""
    baseline = results.baseline_of(arm, baseline)
    ours = per_seed(results, arm, f"accuracy/{test}/final")
    theirs = (
        per_seed(results, arm, f"accuracy/{test}/base")
        if baseline == BASE
        else per_seed(results, baseline, f"accuracy/{test}/final")
    )
    by_pair = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return Difference(
        arm,
        test,
        over_seeds=stats.mean_interval(by_pair),
        over_problems=stats.problem_interval(problem_differences(results, arm, baseline, test)),
        p=stats.p_value(by_pair),
        detectable=stats.detectable(by_pair, comparisons),
    )


def problem_differences(results: Results, arm: str, baseline: str, test: str) -> pd.Series:
    """Per problem: right or wrong (1, 0) in the arm less that in the baseline, mean over the seeds done in both.

    Only problems that all of these cells were tested on.
    """
    cells = by_seed(results, arm)
    others = cells if baseline == BASE else by_seed(results, baseline)
    columns = [
        right(cells[seed], test, "final") - right(others[seed], test, "base" if baseline == BASE else "final")
        for seed in cells
        if seed in others
    ]
    columns = [column for column in columns if len(column)]
    return pd.concat(columns, axis=1).dropna().mean(axis=1) if columns else pd.Series(dtype=float)


def right(cell: Cell, test: str, when: str) -> pd.Series:
    """Whether each problem of a test set was answered rightly, by problem; `when` is base or final."""
    if cell.problems.empty:
        return pd.Series(dtype=float)
    of_test = cell.problems[cell.problems["test"] == test]
    return of_test.groupby("problem", sort=False)[when].mean()


def time_ratio(results: Results, arm: str, baseline: str, key: str = "time/elapsed_s") -> Estimate | None:
    """Seconds of training, evaluation excluded, as a multiple of the baseline's, paired by seed."""
    ours, theirs = per_seed(results, arm, key), per_seed(results, results.baseline_of(arm, baseline), key)
    seeds = [seed for seed in ours if seed in theirs]
    return stats.ratio_interval([ours[s] for s in seeds], [theirs[s] for s in seeds])


# --- time to a target --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """An accuracy in distribution, and where it comes from."""

    value: float
    why: str


@dataclass(frozen=True)
class Reach:
    """How many of an arm's n done cells reached the target, and the median of each axis; infinity: not by half of them."""

    arm: str
    n: int
    reached: int
    median: dict[str, float]


def choose_target(results: Results, baseline: str | None, wanted: float | None) -> Target | None:
    """The accuracy asked for, or else 95% of the way from the base model to the baseline. None where there is no such way."""
    if wanted is not None:
        return Target(wanted, "as given on the command line")
    if results.study.get("target") is not None:
        return Target(float(results.study["target"]), "as the sweep gives it")
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
    """The axes at the first evaluation at or above the target; None where there is none."""
    if cell.metrics.empty or "accuracy/in_dist" not in cell.metrics:
        return None
    rows = cell.metrics[cell.metrics["accuracy/in_dist"] >= target - 1e-9]
    return None if rows.empty else {axis: float(rows.iloc[0][axis]) for axis in AXES if axis in rows}


def reach(results: Results, arm: str, target: float) -> Reach:
    """When the done cells of an arm reached the target. A cell that did not counts as infinitely late."""
    cells = list(by_seed(results, arm).values())
    found = [first_reached(cell, target) for cell in cells]
    at = [f or {} for f in found]
    median = {axis: float(np.median([f.get(axis, math.inf) for f in at])) if at else math.inf for axis in AXES}
    return Reach(arm, len(cells), sum(f is not None for f in found), median)


# --- what is drawn -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A metric against an axis: a line per seed, and their mean where all of them have values."""

    arm: str
    seeds: list[Points]
    mean: Points | None


def written(results: Results, arm: str) -> bool:
    """Whether an arm learns from traces that people or a teacher wrote: then nothing that is said of completions is its own."""
    return any((cell.config.get("algo") or {}).get("train_sampler") for cell in results.of_arm(arm, None))


def curve(results: Results, arm: str, metric: str, axis: str) -> Curve | None:
    """The curve of an arm's done cells; None where nothing was measured or the axis does not move.

    Of an arm that learns from written traces only what its own policy did is drawn, and not against tokens sampled.
    """
    if written(results, arm) and (metric.startswith(OF_COMPLETIONS) or axis == "sampled_tokens"):
        return None
    lines = [points for cell in by_seed(results, arm).values() if (points := _points(cell, metric, axis)) is not None]
    return Curve(arm, lines, mean_line(lines)) if lines else None


def _points(cell: Cell, metric: str, axis: str) -> Points | None:
    if metric not in cell.metrics or axis not in cell.metrics:
        return None
    x, y = cell.metrics[axis].to_numpy(float), cell.metrics[metric].to_numpy(float)
    measured = np.isfinite(x) & np.isfinite(y)
    x, y = x[measured], y[measured]
    return (x, y) if len(x) and (len(x) == 1 or x[-1] > x[0]) else None


def mean_line(lines: Sequence[Points]) -> Points | None:
    """The mean of lines that are interpolated onto a common grid, where all of them have values. None: nowhere."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if low > high:
        return None
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) > GRID:
        grid = np.linspace(low, high, GRID)
    return grid, np.mean([np.interp(grid, x, y) for x, y in lines], axis=0)


def phases(results: Results, arm: str) -> dict[str, float]:
    """Mean seconds by phase over the done cells of an arm, and `other`: the rest of the total. {} without cells."""
    means = {phase: over_seeds(results, arm, f"time/{phase}_s") for phase in PHASES}
    total = over_seeds(results, arm, "time/total_s")
    if total is None:
        return {}
    seconds = {phase: e.value if e else 0.0 for phase, e in means.items()}
    return seconds | {"other": max(0.0, total.value - sum(seconds.values()))}  # phases at the same time exceed the total


def pass_at_k(results: Results, arm: str, test: str) -> dict[int, Estimate]:
    """pass@k by k, with the interval over seeds; `base` is the base model. {} where none was measured."""
    pattern = re.compile(rf"eval/{re.escape(test)}/pass@(\d+)/final")
    found = (pattern.fullmatch(key) for cell in results.cells for key in cell.result)
    ks = sorted({int(match[1]) for match in found if match})
    keys = {k: f"eval/{test}/pass@{k}" for k in ks}
    all_k = {k: of_base(results, key) if arm == BASE else over_seeds(results, arm, f"{key}/final") for k, key in keys.items()}
    return {k: e for k, e in all_k.items() if e is not None}
