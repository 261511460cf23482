"""What `plan=true` says before a run: it is what the run then takes, and what it advises fits."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import NANO, NANO_MODEL, ROOT, SMALL, composed
from transformers import AutoConfig

from dash_exp import memory, model, plan
from dash_exp.errors import UserError
from dash_exp.machine import KNOWN, Device
from dash_exp.validate import DEVICES

HERE = Device("here", "cpu", 8 * 2**30, {"float32": 1e11, "bfloat16": 1e11}, 1e10, (1e10, 1e9), "made up")
LLAMA = ["model=qwen2.5-0.5b", "model.path=meta-llama/Meta-Llama-3-70B", "trainer=gpu"]
# A policy whose update takes more than the interpreter and the problems around it.
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 8000}


def load(**changes):
    settings = {
        "config": AutoConfig.for_model(**NANO),
        "dtype": torch.float32,
        "compute_dtype": torch.float32,
        "attention": "sdpa",
        "checkpointing": False,
        "reference": False,
        "lora_rank": 0,
        "lora_targets": (),
        "moments": 8,
        "packed": True,
        "in_32_bits": True,
        "shards": 1,
        "prompt_tokens": 5,
        "update": (4, 20, 80, 1),
        "decode": (),
    }
    return memory.Load(**(settings | changes))


def total(parts):
    return sum(parts.values())


# --- against a run -----------------------------------------------------------------------------------------------------


def test_the_peak_of_a_run_is_within_a_fifth_of_the_plan(tmp_path):
    """Resident memory at most, all of it and above the imports, of two outer steps on the CPU."""
    overrides = [*SMALL, "model=tiny_random", *(f"model.architecture.{k}={v}" for k, v in WIDE.items()), "algo=no_gf"]
    overrides += ["batch.group_size=8", "resume_every=null", "eval.every=2"]
    peaks = tmp_path / "memory.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "peak_memory.py"),
        str(peaks),
        *overrides,
        f"hydra.run.dir={tmp_path}/run",
    ]
    subprocess.run(command, check=True, capture_output=True)
    seen = json.loads(peaks.read_text())
    found = plan.planned(composed(*overrides), HERE)
    most = max(seen["rss"].values())
    assert found.peak / 2**20 == pytest.approx(most, rel=0.2)
    assert (found.peak - plan.LIBRARIES) / 2**20 == pytest.approx(most - seen["imports"], rel=0.2)


# --- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Meta-Llama-3-70B", 70_553_706_496),
    ],
)
def test_known_shapes_have_the_parameters_that_were_published(name, parameters):
    assert sum(p.numel() for p in model.load_architecture(name, plan.SHAPES[name]).parameters()) == parameters


def test_what_stays_is_counted():
    weights = 4 * sum(p.numel() for p in model.load_policy("", architecture=NANO).parameters())
    parts = memory.peaks(load(reference=True))["update"]
    buffers = 128  # of the positions
    assert parts["weights"] == pytest.approx(weights, abs=buffers) == parts["reference"]
    assert parts["optimizer"] == 2 * weights
    halved = memory.peaks(load(shards=2))["update"]
    assert (halved["weights"], halved["optimizer"]) == (pytest.approx(weights / 2, abs=buffers), weights)
    assert memory.static(load(reference=True), weights // 4, weights // 4) == 5 * weights


def test_a_cache_has_the_room_that_the_sampler_makes():
    """5 tokens of a prompt and 20 - 1 of a completion: 64 more than 6 at first; a layer's keys and values, 1 head of 16."""
    parts = memory.peaks(load(decode=((1, 400, 20, 5),)))["sample"]
    assert parts["KV cache"] == pytest.approx(2 * 2 * 400 * (6 + 64) * 16 * 4, rel=0.01)


def test_fewer_bytes_with_checkpointing_adapters_and_16_bits():
    deep = AutoConfig.for_model(**(NANO | {"num_hidden_layers": 8}))
    plain = memory.peaks(load(config=deep))["update"]
    assert memory.peaks(load(config=deep, checkpointing=True))["update"]["activations"] < 0.5 * plain["activations"]
    adapters = memory.peaks(load(config=deep, lora_rank=2, lora_targets=("q_proj",), moments=8, reference=True))["update"]
    assert adapters["optimizer"] == 8 * 8 * 2 * (32 + 32)  # 8 bytes; of 8 layers, 2 x (inputs + outputs)
    assert "reference" not in adapters
    half = memory.peaks(load(config=deep, dtype=torch.bfloat16, compute_dtype=torch.bfloat16, moments=4, in_32_bits=False))
    assert half["update"]["weights"] == pytest.approx(plain["weights"] / 2, rel=0.01)


def test_deep_models_are_those_that_few_layers_let_expect():
    deep = load(config=AutoConfig.for_model(**(NANO | {"num_hidden_layers": 12})), reference=True, decode=((2, 8, 20, 5),))
    exact, expected = memory.peaks(deep), memory.deep(deep, 4)
    assert {p: total(x) for p, x in expected.items()} == pytest.approx({p: total(x) for p, x in exact.items()}, rel=0.02)


# --- what is said ------------------------------------------------------------------------------------------------------


def test_70b_is_refused_on_one_h200_with_a_reason():
    cfg = composed(*LLAMA, "plan=true", "plan_device=h200")
    found = plan.planned(cfg, KNOWN["h200"], plan.FEW_LAYERS)
    assert not found.fits
    reason = plan.refusal(found)
    assert "does not fit: update needs 1," in reason and "of the 139.8 GiB of H200 141 GB" in reason
    assert list(plan.routes(cfg, found))[-1]["trainer.devices"] == 8


def test_what_is_advised_fits():
    """A device of 0.9 GiB, where passes of 65,536 tokens do not fit."""
    cfg = composed(
        *SMALL, "model=tiny_random", *NANO_MODEL, "batch.micro_tokens=65536", "batch.prompts=64", "batch.group_size=16"
    )
    small = Device(**(vars(HERE) | {"memory": 0.9 * 2**30}))
    found = plan.planned(cfg, small)
    assert not found.fits
    changes = plan.fitted(cfg, small, {})
    assert changes and plan.planned(plan.changed(cfg, changes), small).fits
    assert next(plan.remedies(cfg, found)) == plan.overrides(changes)


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


def test_a_device_that_is_not_here_must_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch finds no GPU on this machine\. Name one with plan_device="):
        plan.device_of(composed("trainer=gpu", "plan=true"))


def test_the_devices_that_can_be_named_are_those_that_are_known():
    assert set(DEVICES) == set(KNOWN)
