import pytest
import torch
import torch.nn.functional as F
from completions import sample_of

from dash_exp.models import log_probs
from dash_exp.models.batch import collate


def test_positions_count_from_the_first_real_token():
    assert log_probs.positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_token_logprobs_equal_those_of_each_row_alone(policy):
    """Padding on both sides must not show: row by row, unpadded, with the softmax written out."""
    samples = [sample_of((5, 6, 7), (8, 9)), sample_of((10,), (11, 12, 13, 1))]
    got = log_probs.token_logprobs(policy, collate(samples, pad_id=0), temperature=0.7)
    for row, sample in enumerate(samples):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logprobs = F.log_softmax(policy(ids).logits[0] / 0.7, dim=-1)
        n = len(sample.prompt_ids)
        for t, token in enumerate(sample.completion_ids):
            torch.testing.assert_close(got[row, t], logprobs[n + t - 1, token])
        assert (got[row, len(sample.completion_ids) :] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 100], ids=lambda n: f"{n} rows at a time")
def test_log_probs_and_gradient_are_those_of_a_softmax_written_out(monkeypatch, temperature, dtype, rows):
    monkeypatch.setitem(log_probs.SOFTMAX, "cpu", rows * 50 * 4)
    generator = torch.Generator().manual_seed(0)
    logits_KV = (5 * torch.randn(8, 50, generator=generator)).to(dtype)
    logits_KV[2, :40] = -torch.inf
    targets_K = torch.tensor([0, 49, 45, 7, 7, 12, 30, 1])
    gradient_K = torch.randn(8, generator=generator)
    expected = logits_KV.double().requires_grad_()
    expected_K = torch.log_softmax(expected / temperature, dim=1)[torch.arange(8), targets_K]
    expected_K.backward(gradient_K.double())

    given = logits_KV.clone().requires_grad_()
    got_K = log_probs.OfTargets.apply(given * 1, targets_K, temperature)
    got_K.backward(gradient_K)
    assert got_K.dtype == torch.float32
    torch.testing.assert_close(got_K.double(), expected_K, atol=1e-5, rtol=1e-5)
    assert given.grad.dtype == dtype
    torch.testing.assert_close(given.grad.double(), expected.grad, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 4e-3)


def test_a_second_backward_pass_is_refused():
    """The first one puts the gradient in place of the logits."""
    logits_KV = torch.randn(3, 5).requires_grad_() * 1
    logprob = log_probs.OfTargets.apply(logits_KV, torch.tensor([0, 1, 2]), 1.0).sum()
    logprob.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprob.backward()
