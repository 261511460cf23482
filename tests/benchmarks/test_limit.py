"""The counts of `benchmarks/limit.py`, against hand-worked ones and against what torch counts of the real model."""

import limit
import pytest
import torch
from conftest import NANO, composed
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem, Prompt, Rollouts
from dash_exp.distributed import ranks

Group = limit.Group

# 10 weights in linear layers, 7 in the head, 1 layer, attention 3 wide, keys 2 wide
SIZE = limit.Size(linear_weights=10, head_weights=7, layers=1, attention_width=3, kv_width=2)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_size_counts_linear_weights_and_grouped_heads(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(NANO | {"model_type": kind})))
    # a layer: q and o 32 x 32, k and v 32 x 16 (one of two heads), gate, up and down 32 x 64
    assert limit.size_of(model) == limit.Size(2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64), 258 * 32, 2, 32, 16)


def test_what_cannot_be_counted_is_refused(policy):
    policy.register_parameter("experts", torch.nn.Parameter(torch.zeros(2, 3, 4)))
    with pytest.raises(UserError, match=r"no linear layer.*experts"):
        limit.size_of(policy)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_forward_flops_are_those_that_torch_counts(kind):
    """Token by token with a cache nothing is computed twice and nothing is masked: what is needed is what is executed."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(NANO | {"model_type": kind})))
    with FlopCounterMode(display=False, custom_mapping=limit.CPU_ATTENTION) as counter, torch.inference_mode():
        cache = None
        for token in range(1, 6):  # a prompt of 1 token, then all but the last of 5
            cache = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
    size = limit.size_of(model)
    assert counter.get_total_flops() == limit.forward_flops(size, Group(1, (5,)))


def test_update_flops_are_those_that_torch_counts_but_for_masked_attention(policy):
    size = limit.size_of(policy)
    with FlopCounterMode(display=False, custom_mapping=limit.CPU_ATTENTION) as counter:
        policy(torch.arange(1, 7)[None], use_cache=False, logits_to_keep=4).logits.sum().backward()
    # prompt 3, completion 4: 6 tokens read. Executed attention is a square of 36 keys, not 21, and its backward computes
    # the scores again: 2 + 5 products instead of 3 x 2. A product takes 2 x width x layers x keys.
    product = 2 * size.attention_width * size.layers
    assert counter.get_total_flops() - limit.update_flops(size, [Group(3, (4,))]) == 7 * product * 36 - 6 * product * 21


def test_forward_flops_by_hand():
    # reads 2 + (2 + 0) tokens, 1 + 2 of them with logits; keys 1 + 2 of the prompt, 3 + 4 of the completion
    assert limit.forward_flops(SIZE, Group(2, (3, 1))) == 2 * 10 * 4 + 2 * 7 * 3 + 4 * 3 * 10
    assert limit.forward_flops(SIZE, Group(2, ())) == 0
    one = limit.forward_flops(SIZE, Group(2, (3, 1)))
    assert limit.update_flops(SIZE, [Group(2, (3, 1))], epochs=2, reference=True) == 2 * 4 * one


def test_sampling_bytes_by_hand():
    # 3 decoding steps; keys and values: 2 + 2 written, 2 x 2 of the prompt and 1 + 2 of the completion read
    assert limit.sampling_bytes(SIZE, [Group(2, (3, 1))], 4) == 4 * (3 * 17 + 4 * (4 + 4 + 3))
    assert limit.sampling_bytes(SIZE, [], 4) == 0


def test_optimizer_bytes_by_hand():
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    # weights, gradient and two moments of 5 numbers and the step's number, each 4 bytes, read and written
    assert limit.optimizer_bytes(optimizer) == 2 * 4 * (4 * 5 + 1)


def test_groups_hold_the_kept_completions():
    prompts = [Prompt(Problem(n, n, ""), ids) for n, ids in (("a", (1, 2)), ("b", (3,)))]
    completions = [Completion((5,) * n, None, False) for n in (1, 2, 3, 4)]
    zeros_PG = torch.zeros(2, 2)
    keep_PG = torch.tensor([[False, True], [False, False]])
    rollouts = Rollouts(prompts, completions, [""] * 4, zeros_PG, zeros_PG, zeros_PG, keep_PG, 0)
    assert limit.groups_of(rollouts) == [Group(2, (1, 2)), Group(1, (3, 4))]
    assert limit.groups_of(rollouts, kept=True) == [Group(2, (2,)), Group(1, ())]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::baddbmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_log_softmax_backward_data", "softmax, log-softmax"),
        ("aten::copy_", "copies, indexing"),
        ("aten::transpose", limit.OVERHEAD),
        ("aten::mul", limit.ELEMENTWISE),
        ("aten::addcdiv_", "optimizer, clipping"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("Memcpy DtoH (Device -> Pageable)", "copies, indexing"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", limit.ELEMENTWISE),
    ],
)
def test_operations_and_kernels_are_grouped(name, group):
    assert limit.group_of_operation(name) == group


def test_two_ranks_need_what_one_needs(tmp_path, monkeypatch):
    """The same completions and gradient. What is executed is counted in both processes, each with some groups."""
    monkeypatch.setattr(limit, "matrix_rate", lambda *_: 1e9)
    found = []
    for size in (1, 2):
        out = tmp_path / str(size)
        several = ["trainer=ddp", f"trainer.devices={size}"] if size > 1 else []
        cfg = composed("algo=dash", "kl.coef=0", "steps=4", "batch.prompts=32", "rollout.max_response_tokens=12", *several)
        out.mkdir()
        OmegaConf.save(cfg, out / "config.yaml", resolve=True)
        with ranks.started(size, out, on_cpu=True, told=pytest.fail, module="limit_rank") as group:
            probe, _, _ = limit.outer_steps(cfg, out, group)
        found.append(probe)
    alone, two = found
    assert [step.flops for step in two.steps] == [step.flops for step in alone.steps]
    assert 1 <= two.executed["update"] / alone.executed["update"] < 1.5  # a prompt may be computed by both
    assert all(step.flops["update"] > 0 and step.rate == 1e9 for step in two.steps)
