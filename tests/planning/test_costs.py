"""Operations and bytes of an outer step, against hand-worked ones and against what torch counts of the real model."""

import pytest
import torch
from conftest import NANO
from limit import CPU_ATTENTION
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from dash_exp.core.errors import UserError
from dash_exp.planning.costs import Group, Size, forward_flops, sampling_bytes, size_of, update_flops

# 10 weights in linear layers, 7 in the head, 1 layer, attention 3 wide, keys 2 wide
SIZE = Size(linear_weights=10, head_weights=7, layers=1, attention_width=3, kv_width=2)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_size_counts_linear_weights_and_grouped_heads(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(NANO | {"model_type": kind})))
    # a layer: q and o 32 x 32, k and v 32 x 16 (one of two heads), gate, up and down 32 x 64
    assert size_of(model) == Size(2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64), 258 * 32, 2, 32, 16)


def test_what_cannot_be_counted_is_refused(policy):
    policy.register_parameter("experts", torch.nn.Parameter(torch.zeros(2, 3, 4)))
    with pytest.raises(UserError, match=r"outside linear layers.*experts"):
        size_of(policy)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_forward_flops_are_those_that_torch_counts(kind):
    """Token by token with a cache nothing is computed twice and nothing is masked: what is needed is what is executed."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(NANO | {"model_type": kind})))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.inference_mode():
        cache = None
        for token in range(1, 6):  # a prompt of 1 token, then all but the last of 5
            cache = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
    size = size_of(model)
    assert counter.get_total_flops() == forward_flops(size, Group(1, (5,)))


def test_update_flops_are_those_that_torch_counts_but_for_masked_attention(policy):
    size = size_of(policy)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        policy(torch.arange(1, 7)[None], use_cache=False, logits_to_keep=4).logits.sum().backward()
    # prompt 3, completion 4: 6 tokens read. Executed attention is a square of 36 keys, not 21, and its backward computes
    # the scores again: 2 + 5 products instead of 3 x 2. A product takes 2 x width x layers x keys.
    product = 2 * size.attention_width * size.layers
    assert counter.get_total_flops() - update_flops(size, [Group(3, (4,))]) == 7 * product * 36 - 6 * product * 21


def test_forward_flops_by_hand():
    # reads 2 + (2 + 0) tokens, 1 + 2 of them with logits; keys 1 + 2 of the prompt, 3 + 4 of the completion
    assert forward_flops(SIZE, Group(2, (3, 1))) == 2 * 10 * 4 + 2 * 7 * 3 + 4 * 3 * 10
    assert forward_flops(SIZE, Group(2, ())) == 0
    one = forward_flops(SIZE, Group(2, (3, 1)))
    assert update_flops(SIZE, [Group(2, (3, 1))], epochs=2, reference=True) == 2 * 4 * one


def test_sampling_bytes_by_hand():
    # 3 decoding steps; keys and values: 2 + 2 written, 2 x 2 of the prompt and 1 + 2 of the completion read
    assert sampling_bytes(SIZE, [Group(2, (3, 1))], 4) == 4 * (3 * 17 + 4 * (4 + 4 + 3))
    assert sampling_bytes(SIZE, [], 4) == 0
