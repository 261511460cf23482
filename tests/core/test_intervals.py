import numpy as np
import pytest

from dash_exp.core.intervals import resampled_mean


def test_the_interval_of_many_values_is_nearly_the_normal_one():
    values = np.array([0.0, 1.0] * 200)
    # standard error: 0.5 / sqrt(400) = 0.025
    assert resampled_mean(values) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    assert resampled_mean(values) == resampled_mean(values)
