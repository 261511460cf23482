"""Verdicts on what a sweep claims (`study.claims`): the numbers of each claim, paired by seed, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dash_exp.report.comparison.arms import BASE, Seed, by_seed, number
from dash_exp.report.comparison.curves import OF_COMPLETIONS, learns_from_traces
from dash_exp.report.comparison.differences import both_tested, solved
from dash_exp.results import stats
from dash_exp.results.cells import Cell, Results
from dash_exp.results.stats import Estimate
from dash_exp.settings import claims
from dash_exp.settings.claims import Claim, values_of


@dataclass(frozen=True)
class Verdict:
    """A claim on two arms, and what the done cells say of it.

    `estimate`: of arm / against or arm - against (`Claim.region` is on the same scale), with its 90% interval over `over`:
    seeds, problems (for these runs only), or "" where there is none. `n`: pairs of seeds. `more_seeds`: how many more would
    decide an undecided claim; None for more than `stats.MOST_SEEDS` and where no interval over seeds says it. `missing`: why
    there is no estimate, or no interval. `left_out`: pairs done in both arms that the estimate is without, and why.
    """

    claim: Claim
    arm: str
    against: str
    word: str = "undecided"
    estimate: Estimate | None = None
    over: str = ""
    n: int = 0
    more_seeds: int | None = None
    missing: str = ""
    left_out: str = ""


def verdicts(results: Results) -> list[Verdict]:
    """One for each claim and pair of arms that it names; one without an estimate for a claim whose arms were not run."""
    found = []
    for claim in claims.read(results.study.get("claims")):
        pairs = list(arms_of(results, claim))
        found += [judged(results, claim, *pair) for pair in pairs] or [Verdict(claim, "", "", missing=_absent(results, claim))]
    return found


def arms_of(results: Results, claim: Claim) -> Iterator[tuple[str, str]]:
    """The pairs of arms: each arm that the claim names, and the one that differs from it only in what `against` names."""
    turned = claim.arm == (BASE,)
    one, other = (claim.against, claim.arm) if turned else (claim.arm, claim.against)
    for arm in results.arms:
        cell = next(cell for cell in results.cells if results.arm(cell) == arm)
        if not _has(cell, one):
            continue
        if other == (BASE,):
            yield (BASE, arm) if turned else (arm, BASE)
            continue
        same = {key: cell.overrides.get(key) for key in results.swept if key not in dict(map(values_of, other))}
        for there in results.cells:
            like = all(there.overrides.get(key) == value for key, value in same.items())
            if like and _has(there, other) and results.arm(there) != arm:
                yield arm, results.arm(there)
                break


def _has(cell: Cell, overrides: tuple[str, ...]) -> bool:
    return all(cell.overrides.get(key) in values for key, values in map(values_of, overrides))


def _absent(results: Results, claim: Claim) -> str:
    for side in (claim.arm, claim.against):
        if side != (BASE,) and not any(_has(cell, side) for cell in results.cells):
            return f"no cell has {', '.join(side)}"
    return "no two arms differ in what it names alone"


def judged(results: Results, claim: Claim, arm: str, against: str) -> Verdict:
    """The verdict on a claim of these two arms."""
    pairs = _pairs(results, arm, against)
    by_problem = _by_problem(claim, pairs, arm, against) if claim.metric == "accuracy" and not claim.is_ratio else {}
    if by_problem:
        by_pair = {seed: float(of_problems.mean()) for seed, of_problems in by_problem.items()}
        without = {seed: "not tested on the same problems" for seed in pairs if seed not in by_problem}
    else:
        by_pair, without = _by_pair(results, claim, pairs, arm, against)
    values = [value for value in by_pair.values() if math.isfinite(value)]
    found = Verdict(claim, arm, against, n=len(values), left_out=_with_seeds(without))
    if not values:
        return replace(found, missing=found.left_out or "no seed is done in both")
    spread = len(values) > 1 and not stats.no_spread(values)
    if not spread and by_problem:
        over = stats.problem_bounds(pd.concat(list(by_problem.values()), axis=1).mean(axis=1))
        assert over is not None
        return replace(found, word=stats.verdict(over, claim.region), estimate=over, over="problems")
    region = (_log(claim.region[0]), _log(claim.region[1])) if claim.is_ratio else claim.region
    mean = stats.mean_interval(values, stats.CLAIMED)
    assert mean is not None
    if len(values) < len(by_pair) or not spread:
        why = "one seed" if len(values) == 1 else "every seed gave the same"
        if len(values) < len(by_pair):  # by its number, not by chance: with it the mean could be anywhere
            why = "what is left out could change the verdict"
        return replace(found, estimate=_shown(replace(mean, low=None, high=None), claim), missing=why)
    word = stats.verdict(mean, region)
    more = stats.more_seeds(values, region) if word == "undecided" else None
    return replace(found, word=word, estimate=_shown(mean, claim), over="seeds", more_seeds=more)


def _pairs(results: Results, arm: str, against: str) -> dict[Seed, tuple[Cell, Cell]]:
    """By seed done in both: their cells. The base model is that of the other arm's cell."""
    ours, theirs = (by_seed(results, against if arm == BASE else arm), by_seed(results, arm if against == BASE else against))
    return {seed: (cell, theirs[seed]) for seed, cell in ours.items() if seed in theirs}


def _by_problem(claim: Claim, pairs: dict[Seed, tuple[Cell, Cell]], arm: str, against: str) -> dict[Seed, pd.Series]:
    """By seed: the difference on each problem that both cells were tested on."""
    sign = -1 if arm == BASE else 1
    found = both_tested(pairs, claim.test, "base" if BASE in (arm, against) else "final")
    return {seed: sign * (pair["arm"] - pair["baseline"]) for seed, pair in found.items()}


def _by_pair(
    results: Results, claim: Claim, pairs: dict[Seed, tuple[Cell, Cell]], arm: str, against: str
) -> tuple[dict[Seed, float], dict[Seed, str]]:
    """By seed: the difference of each pair that has both numbers, or the logarithm of its ratio; NaN where a number is not
    finite, or 0 in a ratio. Second, by seed: why a pair has no value, or NaN.
    """
    found: dict[Seed, float] = {}
    without: dict[Seed, str] = {}
    for seed, cells in pairs.items():
        numbers = {name: measured(results, claim, cell, name == BASE) for name, cell in zip((arm, against), cells, strict=True)}
        x, y = numbers.values()
        if x is None or y is None:
            without[seed] = f"not measured in {_names(name for name, value in numbers.items() if value is None)}"
        elif not _same_problems(claim, *cells):
            without[seed] = "other test problems in each"
        elif not (math.isfinite(x) and math.isfinite(y)):
            found[seed] = math.nan
            without[seed] = f"not finite in {_names(name for name, value in numbers.items() if not math.isfinite(value or 0))}"
        elif not claim.is_ratio:
            found[seed] = x - y
        elif x > 0 and y > 0:
            found[seed] = math.log(x / y)
        else:
            found[seed] = math.nan
            without[seed] = f"no ratio, as it is 0 in {_names(name for name, value in numbers.items() if value == 0)}"
    return found, without


def _names(arms: Iterable[str]) -> str:
    return " and ".join("the base model" if arm == BASE else arm for arm in arms)


def _with_seeds(without: dict[Seed, str]) -> str:
    """`not measured in grpo with seeds 0, 2; no ratio, as it is 0 in dash with seed 1`"""
    seeds: dict[str, list[str]] = {}
    for seed, why in without.items():
        seeds.setdefault(why, []).append(str(seed))
    return "; ".join(f"{why} with seed{'s' * (len(of) > 1)} {', '.join(of)}" for why, of in seeds.items())


def measured(results: Results, claim: Claim, cell: Cell, is_base: bool) -> float | None:
    """The number of a cell that the claim is on; of the base model where `is_base`. None if it was not measured.

    A metric of a test set with a short name, such as `pass@8`, is that at the end; a name of `result.json`, such as
    `time/update_s`, that of the whole run; one of `metrics.csv` alone, such as `eval/in_dist/pass@8`, its mean over the outer
    steps; for `more_variable` its `roughness` over them.
    """
    if claim.metric.startswith(OF_COMPLETIONS) and learns_from_traces(results, results.arm(cell)):
        return None  # the completions are not those of the policy
    name = {"length": "length/mean_tokens"}.get(claim.metric, claim.metric)
    of_test = f"accuracy/{claim.test}" if name == "accuracy" else f"eval/{claim.test}/{name}"
    if claim.kind == "more_variable":
        column = claim.metric if claim.metric in cell.metrics else of_test
        return roughness(cell.metrics[column].iloc[1:].dropna().to_numpy(float)) if column in cell.metrics else None
    if claim.is_of_test:
        return number(cell, f"{of_test}/{'base' if is_base else 'final'}")
    if claim.metric in cell.result:
        return number(cell, claim.metric)
    steps = cell.metrics[claim.metric].iloc[1:].dropna() if claim.metric in cell.metrics else []
    return float(np.mean(steps)) if len(steps) else None


def roughness(values_T: NDArray[np.float64]) -> float | None:
    """How much a curve varies from step to step: the root mean square of x_t - (x_{t-1} + x_{t+1}) / 2.

    A steady rise has none, so that learning fast is not varying much, and one number comes from many steps: two or three runs
    are enough to compare. (For the spread over seeds they are not: with 3 and 3 runs the F test needs a ratio of standard
    deviations above 4.4, and it is not robust.) None for fewer than 3 steps.
    """
    if len(values_T) < 3:
        return None
    between = values_T[1:-1] - (values_T[:-2] + values_T[2:]) / 2
    return float(np.sqrt(np.mean(between**2)))


def _same_problems(claim: Claim, ours: Cell, theirs: Cell) -> bool:
    """Whether a metric of a test set is over the same problems in both cells."""
    test = claim.measured_on
    return not test or set(solved(ours, test, "final").index) == set(solved(theirs, test, "final").index)


def _log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x) if math.isfinite(x) else x


def _shown(e: Estimate, claim: Claim) -> Estimate:
    """Ratios from logarithms of ratios."""
    if not claim.is_ratio:
        return e
    low, high = (None if end is None else math.exp(end) for end in (e.low, e.high))
    return Estimate(math.exp(e.value), low, high, e.n)
