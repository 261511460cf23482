import itertools

import numpy as np
import pytest

from dash_exp.core.errors import UserError
from dash_exp.evaluation.measures import avg_at_n, bootstrap, majority_vote, pass_at_k, wilson


def test_pass_at_k_by_hand():
    # n = 4, k = 2, C(4, 2) = 6: no right one 0; one: 1 - C(3,2)/6 = 1/2; two: 1 - C(2,2)/6 = 5/6; from three on 1
    np.testing.assert_allclose(pass_at_k(4, [0, 1, 2, 3, 4], 2), [0, 1 / 2, 5 / 6, 1, 1])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(k):
    for right in range(6):
        flags = [True] * right + [False] * (5 - right)
        subsets = [any(s) for s in itertools.combinations(flags, k)]
        np.testing.assert_allclose(pass_at_k(5, right, k), np.mean(subsets))


def test_pass_at_k_with_many_completions():
    # one of 10,000 is right: 1 - C(9999, k)/C(10000, k) = k/n
    np.testing.assert_allclose(pass_at_k(10_000, [1, 0], 5_000), [0.5, 0], rtol=1e-10)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_within_n(k):
    with pytest.raises(UserError, match=rf"k={k}: .* n=4"):
        pass_at_k(4, [1], k)


def test_avg_at_n_is_pass_at_1():
    correct_PN = np.array([[True, False, False, True], [False] * 4])
    assert avg_at_n(correct_PN).tolist() == [0.5, 0]
    np.testing.assert_allclose(pass_at_k(4, correct_PN.sum(1), 1), [0.5, 0])


@pytest.mark.parametrize(
    ("answers", "right", "value"),
    [
        (["7", "8", "7"], "7", 1),
        (["7", "8", "8"], "7", 0),
        (["7", "8", "7", "8"], "7", 1 / 2),  # two tied, one of them right
        (["7", "8", "9"], "7", 1 / 3),
        ([None, None, "7"], "7", 1),  # no answer, no vote
        ([None, None], "7", 0),
        (["8", "9"], "7", 0),
    ],
)
def test_majority_vote(answers, right, value):
    correct = [a == right for a in answers]
    assert majority_vote(answers, correct) == pytest.approx(value)
    assert majority_vote(answers[::-1], correct[::-1]) == pytest.approx(value)  # the order decides nothing


def test_wilson_interval_by_hand():
    # z = 1.959964, z^2 = 3.841459; 8 of 10: (8 + 1.920729)/13.841459 = 0.716740, half-width
    # z/13.841459 * sqrt(10 * 0.8 * 0.2 + 0.960365) = 0.226574
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    low, high = wilson(0, 10)
    assert (low, high) == (0, pytest.approx(3.841459 / 13.841459))


def test_bootstrap_interval_is_near_the_normal_one_and_repeats():
    # 400 zeros and ones, half each: standard error 0.5/20 = 0.025, 95%: 0.5 -+ 0.049
    values = [0.0, 1.0] * 200
    low, high = bootstrap(values)
    assert low == pytest.approx(0.451, abs=0.01)
    assert high == pytest.approx(0.549, abs=0.01)
    assert bootstrap(values) == (low, high)


def test_bootstrap_at_its_limits():
    assert bootstrap([0.25] * 5) == (0.25, 0.25)
    assert bootstrap([1.0]) == (None, None)
    assert bootstrap([1.0] * 5) == wilson(5, 5)  # five of five are no certainty
    assert bootstrap([0.0] * 5) == wilson(0, 5)
