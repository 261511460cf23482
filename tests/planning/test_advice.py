"""What `plan=true` advises fits, and what it says where nothing does."""

import pytest
import torch
from conftest import NANO_MODEL, SMALL, TRAIN, composed, program
from plans import HERE, few_layers

from dash_exp.core.errors import UserError
from dash_exp.planning import advice, plan
from dash_exp.planning.machine import KNOWN, Device

LLAMA = ["model=qwen2.5-0.5b", "model.path=meta-llama/Meta-Llama-3-70B", "trainer=gpu"]


def test_70b_is_refused_on_one_h200_with_a_reason():
    cfg = composed(*LLAMA, "plan=true", "plan_device=h200")
    found = plan.planned(cfg, KNOWN["h200"], plan.FEW_LAYERS)
    assert not found.fits
    reason = advice.refusal(found)
    assert "does not fit: update needs 1," in reason and "of the 139.8 GiB of H200 141 GB" in reason
    assert list(advice.routes(cfg, found))[-1]["trainer.devices"] == 8


def test_where_the_whole_copy_of_hf_does_not_fit_servers_are_offered():
    overrides = ["model=llama-3-70b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8"]
    assert {"rollout": "vllm_server"} in list(advice.routes(composed(*overrides), few_layers(*overrides)))


def test_advice_to_share_the_weights_is_for_gpus():
    overrides = ["model=llama-3-70b", "trainer=gpu"]
    sharing = [route for route in advice.routes(composed(*overrides), few_layers(*overrides)) if "trainer.devices" in route]
    assert sharing and all("trainer.accelerator=gpu" in advice.overrides(route) for route in sharing)


def test_what_is_advised_fits():
    """A device of 0.9 GiB, where passes of 65,536 tokens do not fit."""
    cfg = composed(
        *SMALL, "model=tiny_random", *NANO_MODEL, "batch.micro_tokens=65536", "batch.prompts=64", "batch.group_size=16"
    )
    small = Device(**(vars(HERE) | {"memory": 0.9 * 2**30}))
    found = plan.planned(cfg, small)
    assert not found.fits
    changes = advice.fitted(cfg, small, {})
    assert changes and plan.planned(advice.changed(cfg, changes), small).fits
    assert next(advice.remedies(cfg, found, composed("rollout=vllm_server").rollout.sampler)) == advice.overrides(changes)


def test_cpu_memory_beside_a_gpu_is_part_of_the_plan():
    """First policy, reference and snapshot, 5 x 1.84 GiB; at the end policy, reference and two moments, 4 x 1.84."""
    overrides = ["model=qwen2.5-0.5b", "trainer=gpu", "batch.prompts=8", "rollout=vllm_server"]
    small = Device(**(vars(KNOWN["h100"]) | {"cpu_memory": 9 * 2**30}))
    found = few_layers(*overrides, device=small)
    assert found.peak < found.usable and not found.fits
    assert "does not fit: load needs 9.9 GiB of CPU memory (snapshot, where the run resumes 5.5, " in advice.refusal(found)
    cfg = composed(*overrides)
    assert advice.fitted(cfg, small, {}) == {"resume": False}
    assert few_layers(*overrides, "resume=false", device=small).fits


def test_where_the_copy_for_a_snapshot_does_not_fit_none_is_written_on_the_way():
    """Of 1.84 GiB weights: load 4 x 1.84 with a snapshot to read, save 4 x 1.84 with one to write; at the end 3 x 1.84."""
    overrides = ["model=qwen2.5-0.5b", "trainer=gpu", "batch.prompts=8", "kl='0'"]
    small = Device(**(vars(KNOWN["h100"]) | {"cpu_memory": 7.5 * 2**30}))
    changes = advice.fitted(composed(*overrides), small, {})
    assert changes is not None and sorted(advice.overrides(changes)) == ["resume=false", "resume_every=null"]
    assert few_layers(*overrides, *advice.overrides(changes), device=small).fits


def test_a_device_that_is_not_here_must_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch finds no GPU on this machine\. Name one with plan_device="):
        advice.device_of(composed("trainer=gpu", "plan=true"))


def test_the_command_says_it_and_leaves_nothing(train, tmp_path):
    done = train("plan=true", *SMALL, "model=tiny_random", *NANO_MODEL)
    assert done.returncode == 0, done.stderr
    assert "memory of a device" in done.stdout and "fits" in done.stdout and "time of an outer step" in done.stdout
    assert not list(tmp_path.rglob("config.yaml"))
    refused = train(
        "plan=true", "plan_device=h200", *SMALL, "model=tiny_random", *NANO_MODEL, "model.architecture.hidden_size=131072"
    )
    assert refused.returncode == 1
    assert "DOES NOT FIT" in refused.stdout and "error: plan: does not fit: " in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(("folder", "refused"), [(".", False), ("old", True), ("outputs/new", False)])
def test_a_plan_writes_nothing_and_takes_nothing_away(tmp_path, folder, refused):
    (tmp_path / "work" / "old").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    settings = ["plan=true", *SMALL, "model=tiny_random", *NANO_MODEL, f"hydra.run.dir={folder}"]
    settings += [f"plan_device={'b200' if refused else 'h200'}"]
    done = program(tmp_path / "work", TRAIN, *settings, env={"HOME": str(tmp_path / "home")})
    assert done.returncode == (1 if refused else 0), done.stderr
    assert ("error: plan_device=b200" in done.stderr) == refused and "Traceback" not in done.stderr
    assert list((tmp_path / "work").rglob("*")) == [tmp_path / "work" / "old"]


@pytest.mark.parametrize("asked", ["plan=true", "plan=false,true"])
def test_a_sweep_is_not_planned(train, tmp_path, asked):
    done = train("-m", asked, "seed=1,2", *SMALL, "model=tiny_random", *NANO_MODEL)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: plan=true: plans a single run, and -m starts a sweep. Leave -m out, and give the settings of one cell."
    )
    assert not list(tmp_path.rglob("*"))
