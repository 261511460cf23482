import numpy as np
import pytest
from scipy import stats

from dash_exp.core.intervals import resampled_mean


def test_the_interval_of_many_values_is_nearly_the_normal_one():
    values = np.array([0.0, 1.0] * 200)
    # standard error: 0.5 / sqrt(400) = 0.025
    assert resampled_mean(values) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    assert resampled_mean(values) == resampled_mean(values)


@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("draw", [np.random.Generator.normal, lambda rng, size: rng.choice([-1.0, 0, 0, 0, 1], size)])
def test_the_interval_covers_the_mean_in_nineteen_studies_of_twenty(n, draw):
    """Also of few values, such as the 30 problems of a competition. Plain percentiles of 10 values cover it in 91%."""
    rng, studies = np.random.default_rng(0), 400
    covered = 0
    for _ in range(studies):
        low, high = resampled_mean(draw(rng, size=n))
        covered += low <= 0.0 <= high
    few, many = stats.binom.interval(0.999, studies, 0.95)
    assert few <= covered <= many, covered
