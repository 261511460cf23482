"""The interval of a mean, by resampling: of evaluations while a run goes on, and of comparisons after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


def resampled_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979); the same values give the same interval."""
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
