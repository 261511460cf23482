import torch

from dash_exp import kl

POLICY, REFERENCE = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])


def test_k3_by_hand():
    # pi = 1/2, ref = 1/4: 1/2 - log(1/2) - 1 = log 2 - 1/2;  pi = ref: 0;  pi = 1/4, ref = 1/2: 2 - log 2 - 1 = 1 - log 2
    got = kl.k3(POLICY.log()[None], REFERENCE.log()[None])
    torch.testing.assert_close(got, torch.tensor([[0.69314718 - 0.5, 0.0, 1 - 0.69314718]]))


def test_k3_value_is_unbiased_for_the_kl_of_policy_from_reference():
    """E_pi[k3] over the whole distribution is sum pi log(pi/ref) = log2 / 2 - log2 / 4 = log2 / 4."""
    expected = (POLICY * kl.k3(POLICY.log(), REFERENCE.log())).sum()
    torch.testing.assert_close(expected, torch.tensor(0.69314718 / 4))


def test_k3_gradient_in_the_loss_is_that_of_the_other_direction():
    """E_pi[grad k3(x)], tokens held fixed, equals grad KL(ref || pi) and not grad KL(pi || ref)."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    (POLICY * kl.k3(logprobs, REFERENCE.log())).sum().backward()
    got, logits.grad = logits.grad, None
    (REFERENCE * (REFERENCE.log() - torch.log_softmax(logits, -1))).sum().backward()
    torch.testing.assert_close(got, logits.grad)  # = pi - ref = (1/4, 0, -1/4)
    torch.testing.assert_close(got, torch.tensor([0.25, 0.0, -0.25]))
