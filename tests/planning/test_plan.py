"""The plan of a run is what the run then takes."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, composed
from plans import HERE, few_layers

from dash_exp.planning import held, plan

# A policy whose update takes more than the interpreter and the problems around it.
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 8000}


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
    assert (found.peak - held.LIBRARIES) / 2**20 == pytest.approx(most - seen["imports"], rel=0.2)


def test_moments_in_8_bits_take_6_bytes_less_and_let_8b_train_on_one_h200():
    ours = ["model=llama-3-8b", "trainer=gpu", "rollout=vllm_server", "kl='0'", "batch.micro_tokens=4096"]
    plain = few_layers(*ours)
    small = few_layers(*ours, "optimizer._target_=bitsandbytes.optim.AdamW8bit", "~optimizer.fused")
    # two moments of 4 bytes and master weights of 4; of 1 and 4
    assert plain.memory["update"]["optimizer"] == pytest.approx(12 * 8_030_261_248)
    assert small.memory["update"]["optimizer"] == pytest.approx(6 * 8_030_261_248)
    assert small.fits


def test_70b_fits_8_h200_that_share_it_with_an_adapter_and_engines_that_have_98_percent():
    parts = ["model=llama-3-70b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8"]
    assert few_layers(*parts, "rollout=vllm_server", "rollout.sampler.memory_share=0.98").fits
    assert not few_layers("model=llama-3-70b", "trainer=gpu").fits


def test_an_engine_over_8_gpus_has_an_eighth_of_the_weights_on_each():
    parts = ["model=llama-3-70b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8", "rollout=vllm_server"]
    assert not few_layers(*parts).fits
    over_8 = few_layers(*parts, "rollout.sampler.server_nodes=1", "rollout.sampler.gpus_per_server=8")
    assert over_8.fits
    # of each GPU 90%, without what vLLM needs itself; all of the weights are there once
    room = 8 * (0.9 * over_8.device.memory - plan.VLLM_OVERHEAD) - over_8.job.engine_weight_bytes
    assert over_8.cache_tokens == pytest.approx(
        room / (2 * 1024 * 80 * 2)
    )  # keys and values, 8 heads of 128, 80 layers, 16 bits


@pytest.mark.parametrize(
    ("algo", "sleep", "awake"),
    [("dash", True, False), ("dash", False, True), ("grpo", True, True)],  # grpo samples between its backward passes
)
def test_an_engine_is_beside_the_backward_passes_that_it_samples_between(algo, sleep, awake):
    found = few_layers("model=qwen2.5-0.5b", "trainer=gpu", "rollout=vllm", f"algo={algo}", f"rollout.sampler.sleep={sleep}")
    if sleep:  # a server on the same GPU has as much
        own = ["rollout=vllm_server", "rollout.sampler.colocate=true"]
        beside = few_layers("model=qwen2.5-0.5b", "trainer=gpu", *own, f"algo={algo}").memory
        assert {phase: parts.get("vLLM") for phase, parts in beside.items() if phase != "sync"} == {
            phase: parts.get("vLLM") for phase, parts in found.memory.items()
        }
        assert beside["sync"]["vLLM"] == beside["sample"]["vLLM"]
    assert "vLLM" in found.memory["sample"]
    assert ("vLLM" in found.memory["update"]) == awake
    assert ("vLLM" in found.memory["step"]) == (not sleep)
