"""Paired differences between an arm and its baseline: accuracy by seed and by problem, and the ratio of training times.

Two accuracies are compared only over problems that both cells of a pair were tested on, as `problems.csv` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dash_exp.report.comparison.arms import BASE, Seed, by_seed, number, per_seed
from dash_exp.results import stats
from dash_exp.results.cells import Cell, Results
from dash_exp.results.stats import Estimate


@dataclass(frozen=True)
class Difference:
    """Final accuracy of an arm minus that of the baseline, on one test set, as a fraction.

    `by_pair`: the difference of each pair, over the problems of the pair. `over_seeds` and `over_problems` are the same mean
    with two different intervals, if all pairs have the same problems; their n say how many pairs and problems were compared.
    `p` is from the paired t test over seeds; `p_holm` is corrected over all arms. `detectable` is the smallest effect that this
    number of seeds could show.
    """

    arm: str
    test: str
    by_pair: tuple[float, ...]
    over_seeds: Estimate | None
    over_problems: Estimate | None
    p: float | None
    detectable: float | None
    p_holm: float | None = None


def differences(results: Results, baseline: str, test: str, arms: Sequence[str] | None = None) -> list[Difference]:
    """Every arm (or those given) minus its baseline. The baseline `base` is the model that each arm started from."""
    compared = [arm for arm in arms or results.arms if arm != results.baseline_of(arm, baseline)]
    found = [difference(results, arm, baseline, test) for arm in compared]
    corrected = stats.holm([d.p for d in found])
    tests = sum(p is not None for p in corrected)  # Holm's correction counts no others
    return [replace(d, p_holm=p, detectable=stats.detectable(d.by_pair, tests)) for d, p in zip(found, corrected, strict=True)]


def difference(results: Results, arm: str, baseline: str, test: str) -> Difference:
    """One arm minus its baseline (`Results.baseline_of`), over the seeds that are done in both, as the only comparison."""
    found = [pair["arm"] - pair["baseline"] for pair in paired(results, arm, baseline, test).values()]
    by_pair = tuple(float(of_problems.mean()) for of_problems in found)
    return Difference(
        arm,
        test,
        by_pair,
        over_seeds=stats.mean_interval(by_pair),
        over_problems=stats.problem_interval(pd.concat(found, axis=1).mean(axis=1) if found else []),
        p=stats.p_value(by_pair),
        detectable=stats.detectable(by_pair),
    )


def paired(results: Results, arm: str, baseline: str, test: str) -> dict[Seed, pd.DataFrame]:
    """By seed done in both: columns arm and baseline, 1 or 0 for each problem that both cells were tested on.

    A seed without a problem in common is left out. The baseline is `Results.baseline_of`; `base` is the model before training.
    """
    return both_tested(pairs(results, arm, baseline), test, "base" if baseline == BASE else "final")


def both_tested(found: Mapping[Seed, tuple[Cell, Cell]], test: str, when: str) -> dict[Seed, pd.DataFrame]:
    """As `paired`, of these pairs of cells. `when`: base or final, of the second cell of a pair."""
    tables = {
        seed: pd.concat({"arm": solved(ours, test, "final"), "baseline": solved(theirs, test, when)}, axis=1).dropna()
        for seed, (ours, theirs) in found.items()
    }
    return {seed: pair for seed, pair in tables.items() if len(pair)}


def pairs(results: Results, arm: str, baseline: str) -> dict[Seed, tuple[Cell, Cell]]:
    """By seed done in both: the cell of the arm and that of its baseline; the same cell if the baseline is `base`."""
    cells = by_seed(results, arm)
    others = cells if baseline == BASE else by_seed(results, results.baseline_of(arm, baseline))
    return {seed: (cell, others[seed]) for seed, cell in cells.items() if seed in others}


def relative_change(results: Results, arm: str, baseline: str, test: str, metric: str = "accuracy") -> float | None:
    """Mean over the pairs of an arm as a multiple of its baseline's, minus 1. The baseline may be `base`.

    Accuracy is over the problems of each pair. Of another metric (`pass@8`) there is one number for a cell, so only pairs whose
    cells were tested on the same problems count. None without pairs, or if the baseline's mean is 0.
    """
    if metric == "accuracy":
        found = [(pair["arm"].mean(), pair["baseline"].mean()) for pair in paired(results, arm, baseline, test).values()]
    else:
        key = f"eval/{test}/{metric}"
        numbers = [
            (number(ours, f"{key}/final"), number(theirs, f"{key}/{'base' if baseline == BASE else 'final'}"))
            for ours, theirs in pairs(results, arm, baseline).values()
            if set(solved(ours, test, "final").index) == set(solved(theirs, test, "final").index)
        ]
        found = [(ours, theirs) for ours, theirs in numbers if ours is not None and theirs is not None]
    total = sum(theirs for _, theirs in found)
    return float(sum(ours for ours, _ in found) / total) - 1 if total else None


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
