"""Weights in 16 bits whose small steps are not lost, and Adam's moments in 8."""

import copy
from functools import partial

import pytest
import torch
from conftest import NANO_MODEL, SMALL, composed
from runs import broken_after, same

from dash_exp.commands import run
from dash_exp.models.optimizer import MasterWeights, with_master_weights
from dash_exp.results import run_folder
from dash_exp.training import snapshot_file

adamw = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)


def stepped(optimizer, parameters, steps=100):
    for _ in range(steps):
        for parameter in parameters:
            parameter.sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_small_steps_add_up_as_in_32_bits():
    """Numbers of bfloat16 from 0.5 to 2 lie at least 1/256 apart: 1,000 steps of 1e-6 are less, 20 of 1e-3 more."""
    start = torch.linspace(0.5, 2, 64).bfloat16()
    exact, mine, lost = (torch.nn.Parameter(start.clone().to(d)) for d in (torch.float32, torch.bfloat16, torch.bfloat16))
    optimizer = with_master_weights(adamw)([mine])
    assert isinstance(optimizer, MasterWeights)
    plain = adamw([exact])
    stepped(plain, [exact], 1000)
    stepped(optimizer, [mine], 1000)
    stepped(adamw([lost]), [lost], 1000)
    assert torch.equal(lost, start)
    torch.testing.assert_close(optimizer.param_groups[0]["params"][0], exact, rtol=0, atol=0)
    assert torch.equal(mine, exact.bfloat16())
    for group in (*plain.param_groups, *optimizer.param_groups):
        group["lr"] = 1e-3  # as a schedule does
    stepped(plain, [exact], 20)
    stepped(optimizer, [mine], 20)
    assert torch.equal(mine, exact.bfloat16()) and not torch.equal(mine, start)


def test_gradients_are_summed_in_32_bits():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterWeights([parameter], adamw)
    for scale in (256.0, 1.0, 1.0):  # in bfloat16 256 + 1 is 256
        (parameter * scale).sum().backward()
    (master,) = optimizer.param_groups[0]["params"]
    assert master.grad.tolist() == [258.0]
    assert parameter.grad is None
    optimizer.zero_grad()
    assert master.grad is None


def test_what_is_in_32_bits_has_no_copy():
    single = torch.nn.Parameter(torch.ones(3))
    assert type(with_master_weights(adamw)([single])) is torch.optim.AdamW
    both = MasterWeights([single, torch.nn.Parameter(torch.ones(3).bfloat16())], adamw)
    assert both.param_groups[0]["params"][0] is single and len(both.pairs) == 1


@pytest.mark.parametrize("inner", ["torch", "bitsandbytes"])
def test_it_is_saved_and_goes_on(inner):
    make = adamw
    if inner == "bitsandbytes":
        make = partial(pytest.importorskip("bitsandbytes").optim.AdamW8bit, lr=1e-3)
    torch.manual_seed(0)
    alone = torch.nn.Parameter(torch.randn(64, 128).bfloat16())
    broken = copy.deepcopy(alone)
    one, two = MasterWeights([alone], make), MasterWeights([broken], make)
    stepped(one, [alone], 6)
    stepped(two, [broken], 3)
    resumed = torch.nn.Parameter(broken.detach().clone())
    three = MasterWeights([resumed], make)
    three.load_state_dict(two.state_dict())
    stepped(three, [resumed], 3)
    for optimizer, parameter in ((one, alone), (three, resumed)):
        optimizer.param_groups[0]["lr"] = 1e-2  # as a schedule does
        stepped(optimizer, [parameter], 3)
    assert torch.equal(three.param_groups[0]["params"][0], one.param_groups[0]["params"][0])
    assert torch.equal(resumed, alone)


def tensors(state):
    """Those of an optimizer; bitsandbytes keeps its own a level deeper."""
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors(value)]
    return [state] if torch.is_tensor(state) else []


@pytest.mark.parametrize("overrides", ["", "optimizer._target_=bitsandbytes.optim.AdamW8bit ~optimizer.fused"])
def test_a_run_in_16_bits_goes_on_from_its_snapshot(overrides, tmp_path, monkeypatch):
    if overrides:
        pytest.importorskip("bitsandbytes")
    halves = ["model=tiny_random", *NANO_MODEL, "model.dtype=bfloat16", "model.compute_dtype=bfloat16"]
    cfg = composed(*SMALL, *halves, "steps=3", "eval.every=3", *overrides.split())
    run.run(cfg, tmp_path / "alone")
    broken_after(tmp_path / "broken", cfg, 2, monkeypatch)
    state = snapshot_file.read(run_folder.snapshots(tmp_path / "broken")[0])
    assert {m.dtype for m in state["optimizer"]["masters"]} == {torch.float32}
    kinds = {t.dtype for t in tensors(state["optimizer"]["state"]) if t.numel() > 4096}
    assert kinds == ({torch.uint8} if overrides else {torch.float32})
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")
