import torch

from dash_exp import algo


def test_group_normalized_by_hand():
    # rewards 1 0 0 0: mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4, std 1/2, plus 1e-4
    got = algo.group_normalized(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]))
    torch.testing.assert_close(got, torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]) / 0.5001)


def test_group_centered_by_hand():
    got = algo.group_centered(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    assert got.tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]


def test_constant_ignores_the_reward():
    assert algo.constant(torch.tensor([[0.0, 5.0]])).tolist() == [[1, 1]]


def test_policy_gradient_by_hand():
    """A softmax over two tokens with probabilities 1/4 and 3/4; the first was sampled, A = 2.

    loss = -2 log(1/4); d log p0 / d logits = (1 - 1/4, -3/4), so the gradient of the loss is (-1.5, 1.5).
    """
    logits = torch.log(torch.tensor([0.25, 0.75])).requires_grad_()
    logprob = torch.log_softmax(logits, -1)[:1]
    loss = algo.policy_gradient(logprob[None], torch.tensor([2.0]))
    torch.testing.assert_close(loss, torch.tensor([[2 * 1.3862943611]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1.5, 1.5]))
