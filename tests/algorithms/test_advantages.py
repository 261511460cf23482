import pytest
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


EQUAL = [[0.1] * 8, [1000.1] * 8, [0.7] * 3, [0.1 + 0.2, 0.3, 0.3], [-1e-9] * 7, [1000.1, 1000.1 * (1 + 1e-9)]]


@pytest.mark.parametrize("advantage", [advantages.group_normalized, advantages.group_centered, advantages.group_leave_one_out])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rewards", EQUAL)
def test_equal_rewards_have_no_advantage(advantage, dtype, rewards):
    """The mean of eight rewards of 0.1 is not 0.1: in 32 bits the rest would be 7e-5 after division by the deviation + 1e-4."""
    rewards_PG = torch.tensor([rewards, [2.0, *rewards[1:]]], dtype=dtype)
    assert advantages.all_equal(rewards_PG).tolist() == [[True], [False]]
    got = advantage(rewards_PG)
    assert (got[0] == 0).all()
    assert (got[1] != 0).all()


def test_small_differences_are_a_signal():
    # a step of 1e-5 at 1, ten times the limit: 5e-6 above the mean
    assert advantages.group_centered(torch.tensor([[1.0, 1.00001]], dtype=torch.float64))[0, 1] == pytest.approx(5e-6)


def test_right_is_right_where_a_sum_of_parts_is_a_little_less():
    assert advantages.right(torch.tensor([[0.7 + 0.2 + 0.1, 0.99]], dtype=torch.float64)).tolist() == [[1, 0]]
