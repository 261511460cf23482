import torch

from dash_exp import filter as filters

ADVANTAGES = torch.tensor([[0.0, 0.1, -0.1, 0.11], [-0.5, 2.0, 0.0, -0.11]])


def test_keep_all():
    assert filters.keep_all(ADVANTAGES, ADVANTAGES).all()


def test_advantage_above_drops_at_the_threshold_and_below():
    got = filters.advantage_above(ADVANTAGES, ADVANTAGES, threshold=0.1)
    assert got.tolist() == [[False, False, False, True], [True, True, False, True]]


def test_threshold_zero_drops_only_what_has_no_gradient():
    got = filters.advantage_above(ADVANTAGES, ADVANTAGES, threshold=0.0)
    assert got.tolist() == [[False, True, True, True], [True, True, False, True]]
