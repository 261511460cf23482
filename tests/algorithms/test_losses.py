import math
from functools import partial

import pytest
import torch

from dash_exp.algorithms import advantages, losses, weighting

LOSSES = {"policy_gradient": losses.policy_gradient, "ppo_clip": losses.ppo_clip, "gspo": losses.gspo, "cispo": losses.cispo}


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


def test_policy_gradient_by_hand():
    """A softmax over two tokens with probabilities 1/4 and 3/4; the first was sampled, A = 2.

    loss = -2 log(1/4); d log p0 / d logits = (1 - 1/4, -3/4), so the gradient of the loss is (-1.5, 1.5).
    """
    logits = torch.log(torch.tensor([0.25, 0.75])).requires_grad_()
    logprob = torch.log_softmax(logits, -1)[:1]
    loss, clipped = losses.policy_gradient(logprob[None], None, torch.tensor([2.0]), torch.ones(1, 1))
    assert clipped is None
    torch.testing.assert_close(loss, torch.tensor([[2 * 1.3862943611]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1.5, 1.5]))


def at_ratios(loss, ratios, advantages, mask=None):
    """Loss, gradient with respect to the log-probabilities, and clip, for tokens whose ratio to pi_old is given."""
    old = torch.full((len(ratios), len(ratios[0])), -1.0)
    logprobs = (old + torch.tensor(ratios).log()).requires_grad_()
    mask = torch.ones_like(old) if mask is None else torch.tensor(mask)
    loss_BT, clipped_BT = loss(logprobs, old, torch.tensor(advantages), mask)
    (loss_BT * weighting.sequence_mean(mask)).sum().backward()
    return loss_BT.detach(), logprobs.grad, clipped_BT


def test_ppo_clip_by_hand():
    """Ratios 1.5, 1.1, 0.9, 0.5 at clip 0.2, A = 1 and A = -1; the gradient of -r A is -r A, 0 where the clip acts.

    A = 1:  -min(1.5, 1.2), -min(1.1, 1.1), -min(0.9, 0.9), -min(0.5, 0.8)
    A = -1: -min(-1.5, -1.2), ...,                           -min(-0.5, -0.8)
    """
    loss, gradient, clipped = at_ratios(partial(losses.ppo_clip), [[1.5, 1.1, 0.9, 0.5]] * 2, [1.0, -1.0])
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -1.1, -0.9, -0.5], [1.5, 1.1, 0.9, 0.8]]))
    torch.testing.assert_close(gradient * 4, torch.tensor([[0, -1.1, -0.9, -0.5], [1.5, 1.1, 0.9, 0]]))
    assert clipped.tolist() == [[True, False, False, False], [False, False, False, True]]


def test_ppo_clip_higher_by_hand():
    loss, _, clipped = at_ratios(partial(losses.ppo_clip, clip_low=0.2, clip_high=0.28), [[1.25, 1.5]], [2.0])
    torch.testing.assert_close(loss, torch.tensor([[-2.5, -2.56]]))
    assert clipped.tolist() == [[False, True]]


def test_gspo_by_hand():
    """Ratios 4 and 1 (and a masked place): s = sqrt(4 x 1) = 2. A = 1: clipped to 1.1, no gradient. A = -1: loss s = 2,
    d s / d logprob = s / 2 = 1 for each of the two tokens.
    """
    loss, gradient, clipped = at_ratios(
        partial(losses.gspo, clip_low=0.1, clip_high=0.1), [[4.0, 1.0, 7.0]] * 2, [1.0, -1.0], [[1.0, 1, 0]] * 2
    )
    torch.testing.assert_close(loss[:, :2], torch.tensor([[-1.1, -1.1], [2.0, 2.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0, 0], [1.0, 1.0, 0]]))
    assert clipped[:, 0].tolist() == [True, False]


def test_cispo_by_hand():
    """Ratios 5, 2, 0.1 with bounds 0.5 and 3: weights 3, 2, 0.5, each the gradient of its own -w A log pi (A = 2, 3 tokens)."""
    loss, gradient, clipped = at_ratios(partial(losses.cispo, clip_low=0.5, clip_high=2.0), [[5.0, 2.0, 0.1]], [2.0])
    logprobs = [-1 + math.log(5), -1 + math.log(2), -1 + math.log(0.1)]
    torch.testing.assert_close(loss, torch.tensor([[-2 * w * p for w, p in zip([3, 2, 0.5], logprobs, strict=True)]]))
    torch.testing.assert_close(gradient * 3, torch.tensor([[-6.0, -4.0, -1.0]]))
    assert clipped.tolist() == [[True, False, True]]


@pytest.mark.parametrize("name", LOSSES)
def test_at_ratio_one_every_loss_has_the_policy_gradient(name):
    torch.manual_seed(0)
    advantages = torch.randn(3).tolist()
    mask = [[1.0, 1, 1], [1, 1, 0], [1, 0, 0]]
    _, gradient, clipped = at_ratios(LOSSES[name], [[1.0] * 3] * 3, advantages, mask)
    _, expected, _ = at_ratios(losses.policy_gradient, [[1.0] * 3] * 3, advantages, mask)
    torch.testing.assert_close(gradient, expected)
    assert clipped is None or not (clipped & (torch.tensor(mask) == 1)).any()


@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "cispo"])
def test_a_ratio_needs_the_policy_that_sampled(name):
    with pytest.raises(AssertionError, match="log-probabilities of the policy that sampled"):
        LOSSES[name](torch.zeros(1, 1), None, torch.ones(1), torch.ones(1, 1))
