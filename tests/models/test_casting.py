"""Weights that are cast once are those that autocast makes for every token."""

import contextlib

import pytest
import torch
from completions import plain
from conftest import NANO
from tiny_models import random_model, samples
from torch import nn

from dash_exp.core.types import Problem, Prompt
from dash_exp.models import casting, log_probs, packing
from dash_exp.models.batch import collate
from dash_exp.models.loading import frozen_copy, load_policy
from dash_exp.sampling import hf
from dash_exp.sampling.base import Sampling

PROMPTS = [Prompt(Problem(str(i), "", ""), tuple(range(3, 3 + n))) for i, n in enumerate([4, 9, 1, 6])]


def sampled(model, tokenizer):
    return hf.HFSampler(model, tokenizer, 5, torch.bfloat16).sample(PROMPTS, 3, Sampling(8), (0,))


@pytest.mark.parametrize("in_32_bits", [{"cpu"}, set()], ids=["as on CPUs", "as on GPUs"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "olmo2"])
def test_completions_are_those_of_autocast_alone(family, in_32_bits, tokenizer, monkeypatch):
    monkeypatch.setattr(packing, "IN_32_BITS", in_32_bits)
    model = random_model(family)
    found = sampled(model, tokenizer)
    monkeypatch.setattr(hf, "cast", lambda model, dtype: contextlib.nullcontext())
    assert plain(sampled(model, tokenizer)) == plain(found)


def test_all_products_are_of_cast_weights_and_come_back():
    model = random_model("llama")
    model.tie_weights()
    before = dict(model.named_parameters())
    with casting.cast(model, torch.bfloat16):
        assert {m.weight.dtype for m in model.modules() if isinstance(m, nn.Linear)} == {torch.bfloat16}
        others = [m for m in model.modules() if not isinstance(m, nn.Linear)]
        assert {p.dtype for m in others for p in m.parameters(recurse=False)} == {torch.float32}  # embeddings, norms
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)


def test_they_come_back_after_an_error():
    model = random_model("llama")
    before = list(model.parameters())
    with pytest.raises(RuntimeError), casting.cast(model, torch.bfloat16):
        raise RuntimeError
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


class StopsHalfway(dict):
    """Parameters of a layer, where a signal comes while the weight is replaced."""

    def __setitem__(self, name, weight):
        super().__setitem__(name, weight)
        if weight is not None and weight.dtype == torch.bfloat16:
            raise KeyboardInterrupt


def test_they_come_back_after_ctrl_c_while_they_are_replaced():
    model = random_model("llama")
    before = dict(model.named_parameters())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    middle = layers[len(layers) // 2]
    middle._parameters = StopsHalfway(middle._parameters)
    with pytest.raises(KeyboardInterrupt), casting.cast(model, torch.bfloat16):
        pytest.fail("it was interrupted")
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_nothing_is_copied_in_32_bits_or_where_weights_have_the_type():
    model = random_model("llama")
    before = list(model.parameters())
    with casting.cast(model, torch.float32):
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    half = model.to(torch.bfloat16)
    before = list(half.parameters())
    with casting.cast(half, torch.bfloat16):
        assert all(a is b for a, b in zip(before, half.parameters(), strict=True))


def test_an_adapter_and_the_weights_below_it_are_cast(tokenizer, monkeypatch):
    model = load_policy("", architecture=NANO, lora={"r": 4, "alpha": 8})
    with casting.cast(model, torch.bfloat16):
        assert {m.weight.dtype for m in model.modules() if isinstance(m, nn.Linear)} == {torch.bfloat16}
    found = sampled(model, tokenizer)
    monkeypatch.setattr(hf, "cast", lambda model, dtype: contextlib.nullcontext())
    assert plain(sampled(model, tokenizer)) == plain(found)


@pytest.mark.parametrize("masked", [False, True])
def test_the_next_token_repeats_no_keys(masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()[:, None, None] if masked else None
    repeated = (states.repeat_interleave(3, dim=1) for states in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, mask, scale=0.3)
    found, _ = packing.attention(nn.Module(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_reference_that_stays_cast_has_the_same_log_probs(family):
    model = random_model(family).eval()
    reference = frozen_copy(model)
    casting.keep_cast(reference, torch.bfloat16)
    batch = collate(samples(), 0, packed=True)
    with torch.no_grad(), log_probs.autocast(torch.device("cpu"), torch.bfloat16):
        found, expected = (log_probs.token_logprobs(m, batch, 1.0) for m in (reference, model))
    assert torch.equal(found, expected)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
