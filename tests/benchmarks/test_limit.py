"""What `benchmarks/limit.py` counts of a run, against hand-worked numbers."""

import contextlib

import limit
import pytest
import torch
import worlds
from conftest import composed

from dash_exp.commands import run
from dash_exp.core.types import Completion, Problem, Prompt, Rollouts
from dash_exp.planning.costs import Group


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
        beside = worlds.two_ranks(limit.outer_steps) if size > 1 else contextlib.nullcontext()
        with beside, run.leading(cfg, out) as group:
            probe, _, _ = limit.outer_steps(cfg, out, group)
        found.append(probe)
    alone, two = found
    assert [step.flops for step in two.steps] == [step.flops for step in alone.steps]
    assert 1 <= two.executed["update"] / alone.executed["update"] < 1.5  # a prompt may be computed by both
    assert all(step.flops["update"] > 0 and step.rate == 1e9 for step in two.steps)
