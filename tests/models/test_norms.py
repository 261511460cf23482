"""RMSNorm a few rows at a time, against that of Transformers."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dash_exp.models import norms


def both(size, dtype=torch.float32):
    plain = LlamaRMSNorm(size, eps=1e-5).to(dtype)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 1.5)
    ours = copy.deepcopy(plain)
    norms.enable(ours)
    assert type(ours) is norms.Norm
    return plain, ours


@pytest.mark.parametrize("shape", [(1, 7, 6), (3, 5, 2, 8), (1, 1, 4)])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_numbers_and_gradients_are_those_of_transformers(shape, rows, monkeypatch):
    monkeypatch.setattr(norms, "BYTES", rows * shape[-1] * 4)
    torch.manual_seed(0)
    plain, ours = both(shape[-1])
    gradients = []
    values = torch.randn(shape)
    outside = torch.randn(shape)
    for norm in (plain, ours):
        states = values.clone().requires_grad_()
        out = norm(states)
        (out * outside).sum().backward()
        gradients.append((out, states.grad, norm.weight.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    for one, other in zip(*(g[1:] for g in gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_formula():
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    states = torch.randn(4, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: norms.OfRows.apply(x, w, 1e-5), (states.requires_grad_(), weight.requires_grad_())
    )


def test_a_transposed_input_and_a_frozen_weight():
    plain, ours = both(6)
    ours.weight.requires_grad_(False)
    values = torch.randn(6, 4).T.requires_grad_()
    ours(values).sum().backward()
    mine = values.grad.clone()
    values.grad = None
    plain(values).sum().backward()
    torch.testing.assert_close(mine, values.grad)
    assert ours.weight.grad is None


def test_numbers_of_16_bits_are_left_to_transformers(monkeypatch):
    monkeypatch.setattr(norms.OfRows, "apply", lambda *_: pytest.fail("not for these"))
    plain, ours = both(6, torch.bfloat16)
    states = torch.randn(2, 6, dtype=torch.bfloat16)
    assert torch.equal(plain(states), ours(states))
