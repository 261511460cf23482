"""Paired differences between an arm and its baseline: accuracy by seed and by problem, and the ratio of training times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dash_exp.report.comparison.arms import BASE, by_seed, per_seed
from dash_exp.results import stats
from dash_exp.results.cells import Cell, Results
from dash_exp.results.stats import Estimate


@dataclass(frozen=True)
class Difference:
    """Final accuracy of an arm minus that of the baseline, on one test set, as a fraction.

    `over_seeds` and `over_problems` are the same mean with two different intervals. `p` is from the paired t test over seeds;
    `p_holm` is corrected over all arms. `detectable` is the smallest effect that this number of seeds could show.
    """

    arm: str
    test: str
    over_seeds: Estimate | None
    over_problems: Estimate | None
    p: float | None
    detectable: float | None
    p_holm: float | None = None


def differences(results: Results, baseline: str, test: str, arms: Sequence[str] | None = None) -> list[Difference]:
    """Every arm (or those given) minus its baseline. The baseline `base` is the model that each arm started from."""
    compared = [arm for arm in arms or results.arms if arm != results.baseline_of(arm, baseline)]
    found = [difference(results, arm, baseline, test, len(compared)) for arm in compared]
    corrected = stats.holm([d.p for d in found])
    return [replace(d, p_holm=p) for d, p in zip(found, corrected, strict=True)]


def difference(results: Results, arm: str, baseline: str, test: str, comparisons: int = 1) -> Difference:
    """One arm minus its baseline (`Results.baseline_of`), over the seeds that are done in both."""
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
    """By problem: correct (1) or wrong (0) in the arm minus the same in the baseline, mean over the seeds done in both.

    Only problems that all of these cells were tested on.
    """
    cells = by_seed(results, arm)
    others = cells if baseline == BASE else by_seed(results, baseline)
    columns = [
        solved(cells[seed], test, "final") - solved(others[seed], test, "base" if baseline == BASE else "final")
        for seed in cells
        if seed in others
    ]
    columns = [column for column in columns if len(column)]
    return pd.concat(columns, axis=1).dropna().mean(axis=1) if columns else pd.Series(dtype=float)


def solved(cell: Cell, test: str, when: str) -> pd.Series:
    """Whether each problem of a test set was solved (1 or 0), by problem; `when` is base or final."""
    if cell.problems.empty:
        return pd.Series(dtype=float)
    of_test = cell.problems[cell.problems["test"] == test]
    return of_test.groupby("problem", sort=False)[when].mean()


def time_ratio(results: Results, arm: str, baseline: str, key: str = "time/elapsed_s") -> Estimate | None:
    """Training time without evaluation as a multiple of the baseline's, paired by seed."""
    ours, theirs = per_seed(results, arm, key), per_seed(results, results.baseline_of(arm, baseline), key)
    seeds = [seed for seed in ours if seed in theirs]
    return stats.ratio_interval([ours[s] for s in seeds], [theirs[s] for s in seeds])
