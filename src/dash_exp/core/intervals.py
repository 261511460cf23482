"""The confidence interval of a mean, by resampling: for evaluations during a run and comparisons after it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


def resampled_mean(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The ends of the interval of the mean of n >= 2 `values`, shape (n,): expanded percentile bootstrap.

    The plain percentiles (Efron 1979) are as narrow as a normal interval with the variance divided by n: over 10 values they
    hold the mean in 91% of studies. So percentiles further out are taken: Phi(sqrt(n / (n - 1)) t) with t of n - 1 degrees of
    freedom (Hesterberg 2015, arXiv 1411.5279). Below about 8 values the interval is still too narrow, because no
    resampled mean lies outside the values. The same values give the same interval.
    """
    n = len(values)
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // n),
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
