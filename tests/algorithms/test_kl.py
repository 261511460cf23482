import math

import pytest
import torch

from dash_exp.algorithms import kl, kl_penalty
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models import loading

POLICY, REFERENCE = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
LOG2 = math.log(2)


def test_estimators_by_hand():
    """log(pi/ref) is log 2, 0, -log 2; ref/pi is 1/2, 1, 2."""

    def values(estimator):
        return estimator(POLICY.log()[None], REFERENCE.log()[None])

    torch.testing.assert_close(values(kl.k1), torch.tensor([[LOG2, 0.0, -LOG2]]))
    torch.testing.assert_close(values(kl.k2), torch.tensor([[LOG2**2 / 2, 0.0, LOG2**2 / 2]]))
    torch.testing.assert_close(values(kl.k3), torch.tensor([[LOG2 - 0.5, 0.0, 1 - LOG2]]))


def kl_forward(logprobs):
    """KL(policy || reference) over the whole distribution."""
    return (logprobs.exp() * (logprobs - REFERENCE.log())).sum()


def kl_backward(logprobs):
    """KL(reference || policy)."""
    return (REFERENCE * (REFERENCE.log() - logprobs)).sum()


def gradient_of(function):
    """Gradient with respect to the logits of the policy, at POLICY."""
    logits = POLICY.log().clone().requires_grad_()
    function(torch.log_softmax(logits, -1)).backward()
    return logits.grad


def in_loss(estimator):
    """E_pi[grad k(x)]: every token x with its probability, held fixed, as samples are."""
    return gradient_of(lambda logprobs: (POLICY * estimator(logprobs, REFERENCE.log())).sum())


def in_reward(estimator):
    """E_pi[k(x) grad log pi(x)]: the policy gradient with k as a cost."""
    return gradient_of(lambda logprobs: (POLICY * estimator(POLICY.log(), REFERENCE.log()) * logprobs).sum())


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_k1_and_k3_have_the_kl_as_their_mean(estimator):
    mean = (POLICY * estimator(POLICY.log(), REFERENCE.log())).sum()
    torch.testing.assert_close(mean, torch.tensor(LOG2 / 4))  # log2 / 2 - log2 / 4
    torch.testing.assert_close(mean, kl_forward(POLICY.log()))


def test_k2_is_biased():
    mean = (POLICY * kl.k2(POLICY.log(), REFERENCE.log())).sum()
    torch.testing.assert_close(mean, torch.tensor(LOG2**2 / 2 * 0.75))


def test_gradients_in_the_loss():
    torch.testing.assert_close(in_loss(kl.k1), torch.zeros(3))  # noise only
    torch.testing.assert_close(in_loss(kl.k2), gradient_of(kl_forward))
    torch.testing.assert_close(in_loss(kl.k3), gradient_of(kl_backward))
    torch.testing.assert_close(in_loss(kl.k3), torch.tensor([0.25, 0.0, -0.25]))  # pi - ref
    assert not torch.allclose(gradient_of(kl_forward), gradient_of(kl_backward), atol=0.01)  # they are two directions


def test_gradients_in_the_reward():
    torch.testing.assert_close(in_reward(kl.k1), gradient_of(kl_forward))
    mean_k2 = gradient_of(lambda lp: (lp.exp() * kl.k2(lp, REFERENCE.log())).sum())
    torch.testing.assert_close(in_reward(kl.k2), mean_k2 - gradient_of(kl_forward))
    torch.testing.assert_close(in_reward(kl.k3), gradient_of(kl_forward) - gradient_of(kl_backward))


def test_constant_linear_and_cosine_by_hand():
    assert [kl.Constant(0.04, 5)(s) for s in (0, 4)] == [0.04, 0.04]
    assert [kl.Linear(0.4, 5, final=0.0)(s) for s in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    half = math.sqrt(0.5) / 2
    assert [kl.Cosine(1.0, 5, final=0.0)(s) for s in range(5)] == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half, 0])
    assert kl.Linear(0.1, 1, final=0.0)(0) == 0.1  # a run of one step


def test_a_schedule_that_is_always_zero_needs_no_reference():
    assert kl.Constant(0.0, 5).always_zero
    assert not kl.Linear(0.0, 5, final=0.1).always_zero
    assert kl.Cosine(0.0, 5, final=0.0).always_zero


def test_adaptive_by_hand():
    """Twice the target: the error is held at 0.2, so x 1.1 at rate 0.5; half of it: x 0.9; 10% above: x 1.05."""
    coef = kl.Adaptive(1.0, 10, target=0.01, rate=0.5)
    seen = [coef(0)]
    for step, nats in enumerate([0.02, 0.005, 0.011], start=1):
        coef.observe(nats)
        seen.append(coef(step))
    assert seen == pytest.approx([1.0, 1.1, 1.1 * 0.9, 1.1 * 0.9 * 1.05])


def test_the_penalty_on_rewards_written_out(policy):
    """Row by row without padding: the sum of log(pi/ref) over the completion, pi as the sampler recorded it."""
    reference = loading.frozen_copy(policy)
    rows = [((5, 6, 7), (8, 9), (-0.5, -1.5)), ((10,), (11, 12, 13, 1), (-0.1, -0.2, -0.3, -0.4))]
    prompts = [Prompt(Problem(str(i), "?", "1"), prompt) for i, (prompt, _, _) in enumerate(rows)]
    completions = [Completion(ids, logprobs, False) for _, ids, logprobs in rows]
    penalty_B, k3_B = kl_penalty.RewardPenalty(reference, kl.k1, micro_tokens=6, temperature=1.0, pad_id=0)(
        prompts, completions
    )
    for i, (prompt, ids, logprobs) in enumerate(rows):
        ref = torch.log_softmax(reference(torch.tensor([prompt + ids])).logits[0], -1)
        ref = [ref[len(prompt) + t - 1, token].item() for t, token in enumerate(ids)]
        assert penalty_B[i].item() == pytest.approx(sum(p - r for p, r in zip(logprobs, ref, strict=True)), rel=1e-5)
        k3 = sum(math.exp(r - p) - (r - p) - 1 for p, r in zip(logprobs, ref, strict=True))
        assert k3_B[i].item() == pytest.approx(k3, rel=1e-4)
