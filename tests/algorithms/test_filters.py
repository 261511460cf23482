import itertools
import random

import torch

from dash_exp.algorithms import filters

ADVANTAGES = torch.tensor([[0.0, 0.1, -0.1, 0.11], [-0.5, 2.0, 0.0, -0.11]])


def test_keep_all():
    assert filters.KeepAll()(ADVANTAGES, ADVANTAGES).all()


def test_advantage_above_drops_at_the_threshold_and_below():
    got = filters.AdvantageAbove(0.1)(ADVANTAGES, ADVANTAGES)
    assert got.tolist() == [[False, False, False, True], [True, True, False, True]]


def test_threshold_zero_drops_only_what_has_no_gradient():
    got = filters.AdvantageAbove(0.0)(ADVANTAGES, ADVANTAGES)
    assert got.tolist() == [[False, True, True, True], [True, True, False, True]]


def test_quantile_keeps_the_largest_of_the_whole_call():
    # |A| in order: 2, 0.5, 0.11, 0.11, 0.1, 0.1, 0, 0; half of 8 are the first four
    got = filters.Quantile(0.5)(ADVANTAGES, ADVANTAGES)
    assert got.tolist() == [[False, False, False, True], [True, True, False, True]]
    # three are asked for, and the third has an equal: both stay
    assert filters.Quantile(0.625)(ADVANTAGES, ADVANTAGES).tolist() == got.tolist()
    # nothing is dropped by share, but A = 0 has no gradient
    assert filters.Quantile(0.0)(ADVANTAGES, ADVANTAGES).tolist() == (ADVANTAGES != 0).tolist()


def test_pods_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    got = filters.PODS(2)(rewards, rewards)
    assert sorted(rewards[0][got[0]].tolist()) == [0, 1]
    assert got[1].tolist() == [True, False, False, True]


def test_pods_finds_the_largest_variance_of_all_choices():
    rng = random.Random(0)
    for _ in range(100):
        rewards = torch.tensor([[rng.choice([0.0, 0.1, 1.0, 5.0, -2.0]) for _ in range(6)]])
        n = rng.randint(2, 6)
        kept = rewards[filters.PODS(n)(rewards, rewards)]
        best = max(torch.tensor(c).var(correction=0).item() for c in itertools.combinations(rewards[0].tolist(), n))
        assert len(kept) == n
        torch.testing.assert_close(kept.var(correction=0).item(), best)


def test_cppo_by_hand():
    advantages = torch.tensor([[2.0, -1.0, 0.5, -1.5], [1.0, -1.0, 1.0, -1.0]])
    got = filters.CPPO(0.5)(advantages, advantages)
    assert got.tolist() == [[True, False, False, True], [True, True, False, False]]
    assert filters.CPPO(0.9)(advantages, advantages).sum(1).tolist() == [1, 1]  # at least one
    assert filters.CPPO(0.2)(torch.ones(1, 5), torch.ones(1, 5)).sum() == 4  # 5 x 0.8, rounding errors aside


def test_zero_variance_goes_by_groups():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    got = filters.ZeroVariance()(rewards, rewards)
    assert got.tolist() == [[False, False], [True, True], [False, False]]
    got = filters.ZeroVariance()(torch.tensor([[0.1 + 0.2, 0.3], [0.3, 0.2]], dtype=torch.float64), rewards[:2])
    assert got.tolist() == [[False, False], [True, True]]
