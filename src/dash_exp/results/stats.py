"""The statistics of a comparison: thin wrappers around scipy. Numbers in, numbers out, nothing about runs.

Two kinds of interval answer two questions. Over *seeds* (Student's t): how uncertain is the mean because of the choice of
seeds, on these problems? Over *problems* (bootstrap): how uncertain is it because of the choice of test problems, for these
runs? All intervals are two-sided 95% intervals, except those of claims.

A claim says that a mean lies in a region: above 0, below a bound, between two margins. It has a two-sided 90% interval, so
that each end is a one-sided 95% bound: a claim that is false is found supported in at most 5% of studies, and one that is
true contradicted in at most 5%. This is the one-sided test of superiority and of non-inferiority, and the two one-sided tests
of equality (TOST, Schuirmann 1987), in one rule. The level is that of each claim, not divided by their number: each was stated
before the runs and is answered for itself, and nothing is concluded from any one of them being supported. The report says how
many there are, because the more there are, the more likely it is that one of them has a wrong verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from dash_exp.core.intervals import CONFIDENCE, resampled_mean

POWER = 0.8
CLAIMED = 0.9  # confidence of the interval of a claim
MOST_SEEDS = 50  # no larger number of further seeds is looked for
Region = tuple[float, float]  # the values that a claim allows, ends excluded; an end may be infinite


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and the ends of its interval, in the unit of the values. The ends are None if n is 1."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean with its t interval over n values, such as seeds. None without values.

    n equal values give an interval of zero width. That is what the formula gives; it does not mean that nothing is uncertain.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        return None
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, None, None, 1)
    if no_spread(x):
        return Estimate(mean, mean, mean, len(x))
    interval = stats.ttest_1samp(x, 0.0).confidence_interval(confidence)
    return Estimate(mean, float(interval.low), float(interval.high), len(x))


def p_value(differences: ArrayLike) -> float | None:
    """p of the paired t test that the mean difference is 0. None for fewer than two differences, or if all are equal."""
    x = np.asarray(differences, dtype=float)
    return None if len(x) < 2 or no_spread(x) else float(stats.ttest_1samp(x, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (1979) of the m p values that are not None. The order stays.

    The i-th smallest is multiplied by m + 1 - i; none is below one before it, or above 1.
    """
    defined = np.array([p for p in p_values if p is not None])
    order = np.argsort(defined)
    corrected = np.empty_like(defined)
    corrected[order] = np.maximum.accumulate(defined[order] * np.arange(len(defined), 0, -1)).clip(max=1.0)
    found = iter(corrected)
    return [None if p is None else float(next(found)) for p in p_values]


def problem_interval(differences_P: ArrayLike) -> Estimate | None:
    """Mean over problems with its bootstrap interval. None without problems.

    One value per problem, here its difference averaged over seeds, so that a problem is resampled together with all its seeds.
    """
    x = np.asarray(differences_P, dtype=float)
    if len(x) < 2 or no_spread(x):
        return mean_interval(x)
    return Estimate(float(x.mean()), *resampled_mean(x), len(x))


def detectable(differences: ArrayLike, comparisons: int = 1) -> float | None:
    """The smallest true mean difference that a paired t test with this number of seeds finds in 80% of studies.

    With several comparisons the significance level is divided by their number (Bonferroni). Holm's procedure finds all that is
    found at this level, and no more than that where no other arm differs. The standard deviation of the differences is treated
    as known, although it is estimated from the same few values. None for fewer than two differences, or if all are equal.
    """
    x = np.asarray(differences, dtype=float)
    if len(x) < 2 or no_spread(x):
        return None
    alpha = (1 - CONFIDENCE) / comparisons
    return detectable_in_sd(len(x), alpha) * float(x.std(ddof=1))


def detectable_in_sd(n: int, alpha: float) -> float:
    """The mean of n >= 2 normal values, in their standard deviations, that a two-sided t test at level `alpha` finds in 80%.

    The test statistic has a noncentral t distribution with n - 1 degrees of freedom and noncentrality sqrt(n) mean / sd. Only
    its upper tail counts: an effect found with the wrong sign is not found (and scipy's lower tail is NaN far out). Raises
    ArithmeticError rather than return a value that does not have this power.
    """
    critical = stats.t.isf(alpha / 2, n - 1)

    def missing(noncentrality: float) -> float:
        return POWER - float(stats.nct.sf(critical, n - 1, noncentrality))

    upper = 1.0
    while missing(upper) > 0:
        upper *= 2
    found = optimize.brentq(missing, 0.0, upper, xtol=1e-9)
    if not abs(missing(found)) < 1e-6:  # also where scipy gave NaN
        raise ArithmeticError(f"no noncentrality has a power of {POWER} for n={n} and alpha={alpha}")
    return found / math.sqrt(n)


def ratio_interval(values: ArrayLike, baselines: ArrayLike) -> Estimate | None:
    """Geometric mean of value / baseline over pairs, with its t interval on a log scale. None if a value is not above 0."""
    x, y = np.asarray(values, dtype=float), np.asarray(baselines, dtype=float)
    if not len(x) or (x <= 0).any() or (y <= 0).any():
        return None
    found = mean_interval(np.log(x / y))
    assert found is not None
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Estimate(math.exp(found.value), low, high, found.n)


def no_spread(values: ArrayLike) -> bool:
    """Whether all values are equal up to rounding."""
    x = np.asarray(values, dtype=float)
    return bool(np.allclose(x, x[0], rtol=1e-12, atol=1e-12))


def problem_bounds(differences_P: ArrayLike) -> Estimate | None:
    """The interval of a claim over problems: as `problem_interval`, but never without width.

    Each of the P differences is from -1 to 1. If all are equal, nothing is known of the spread, but a problem that differs
    cannot be frequent: with a share above 1 - 0.05^(1/P) one would have been met in 95% of studies (the exact binomial bound).
    """
    x = np.asarray(differences_P, dtype=float)
    if not len(x):
        return None
    value = float(x.mean())
    if no_spread(x):
        share = 1 - ((1 - CLAIMED) / 2) ** (1 / len(x))
        return Estimate(value, value - share * (1 + value), value + share * (1 - value), len(x))
    return Estimate(value, *resampled_mean(x, CLAIMED), len(x))


def verdict(e: Estimate, region: Region) -> str:
    """supported: the whole interval is inside the region. contradicted: it is outside. Otherwise, or without one: undecided."""
    if e.low is None or e.high is None:
        return "undecided"
    if region[0] < e.low and e.high < region[1]:
        return "supported"
    return "contradicted" if e.high <= region[0] or region[1] <= e.low else "undecided"


def more_seeds(values: ArrayLike, region: Region) -> int | None:
    """How many more values would decide the claim in 80% of studies, if mean and spread are those of these n >= 2 values.

    None for more than 50. With two ends of the region near, both tests must succeed; the sum of what each misses is taken,
    which is at least what they miss together. Few values give a rough number: of 3 values the spread is easily half or twice
    that of many.
    """
    x = np.asarray(values, dtype=float)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    inside = region[0] < mean < region[1]
    distances = [abs(mean - end) for end in region if math.isfinite(end)]
    distances = distances if inside else [min(distances)]
    for more in range(1, MOST_SEEDS + 1):
        if sum(1 - found(distance / sd, len(x) + more) for distance in distances) <= 1 - POWER:
            return more
    return None


def found(effect_sd: float, n: int) -> float:
    """The power of the one-sided t test of a claim with n values: the effect is given in standard deviations."""
    return float(stats.nct.sf(stats.t.ppf((1 + CLAIMED) / 2, n - 1), n - 1, math.sqrt(n) * effect_sd))
