import torch

from dash_exp.algorithms import advantages


def test_group_normalized_by_hand():
    # rewards 1 0 0 0: mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4, std 1/2, plus 1e-4
    got = advantages.group_normalized(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]))
    torch.testing.assert_close(got, torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]) / 0.5001)


def test_group_centered_by_hand():
    got = advantages.group_centered(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    assert got.tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]


def test_group_leave_one_out_by_hand():
    # 3 against the mean of (1, 2) = 1.5; 1 against (3 + 2) / 2; 2 against (3 + 1) / 2
    got = advantages.group_leave_one_out(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(got, torch.tensor([[1.5, -1.5, 0.0], [0.0, 0.0, 0.0]]))


def test_raw_is_the_reward_and_constant_ignores_it():
    assert advantages.raw(torch.tensor([[0.0, 5.0]])).tolist() == [[0, 5]]
    assert advantages.constant(torch.tensor([[0.0, 5.0]])).tolist() == [[1, 1]]


def test_right_is_one_from_the_least_on():
    assert advantages.right(torch.tensor([[0.0, 0.1, 1.0, 1.1, -1.0]])).tolist() == [[0, 0, 1, 1, 0]]
