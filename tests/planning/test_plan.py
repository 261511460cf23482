"""What `plan=true` says before a run: it is what the run then takes, and what it advises fits."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import NANO, NANO_MODEL, ROOT, SMALL, TRAIN, composed, program
from transformers import AutoConfig

from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.planning import advice, memory, plan, timing
from dash_exp.planning.job import SHAPES, job_of
from dash_exp.planning.machine import KNOWN, Device
from dash_exp.settings.validate import DEVICES

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
        "masters": False,
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
    assert sum(p.numel() for p in loading.load_architecture(name, SHAPES[name]).parameters()) == parameters


def test_what_stays_is_counted():
    weights = 4 * sum(p.numel() for p in loading.load_policy("", architecture=NANO).parameters())
    parts = memory.peaks(load(reference=True))["update"]
    buffers = 128  # of the positions
    assert parts["weights"] == pytest.approx(weights, abs=buffers) == parts["reference"]
    assert parts["optimizer"] == 2 * weights
    halved = memory.peaks(load(shards=2))["update"]
    assert (halved["weights"], halved["optimizer"]) == (pytest.approx(weights / 2, abs=buffers), weights)
    assert memory.static(load(reference=True), weights // 4, weights // 4) == 5 * weights


def test_a_cache_has_the_room_that_the_sampler_makes():
    """Room for 64 tokens more than at first: 5 of the prompt, 1 of a completion. A layer has keys and values, 1 head of 16."""
    of_token = 2 * 2 * 16 * 4
    once = memory.peaks(load(decode=((1, 400, 20, 5),)))["sample"]
    assert once["KV cache"] == pytest.approx(of_token * ((5 + 64) + 400 * (1 + 64)), rel=0.01)
    each = memory.peaks(load(decode=((1, 400, 20, 5),), in_32_bits=False))["sample"]  # as on a GPU
    assert each["KV cache"] == pytest.approx(of_token * 400 * (6 + 64), rel=0.01)


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


def planned(*overrides, device=KNOWN["h200"]):
    return plan.planned(composed(*overrides), device, plan.FEW_LAYERS)


def test_moments_in_8_bits_take_6_bytes_less_and_let_8b_train_on_one_h200():
    ours = ["model=llama-3-8b", "trainer=gpu", "rollout=vllm_server", "kl='0'", "batch.micro_tokens=4096"]
    plain = planned(*ours)
    small = planned(*ours, "optimizer._target_=bitsandbytes.optim.AdamW8bit", "~optimizer.fused")
    # two moments of 4 bytes and master weights of 4; of 1 and 4
    assert plain.memory["update"]["optimizer"] == pytest.approx(12 * 8_030_261_248)
    assert small.memory["update"]["optimizer"] == pytest.approx(6 * 8_030_261_248)
    assert small.fits


def test_70b_fits_8_h200_that_share_it_with_an_adapter_and_engines_that_have_98_percent():
    parts = ["model=llama-3-70b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8"]
    assert planned(*parts, "rollout=vllm_server", "rollout.sampler.memory_share=0.98").fits
    assert not planned("model=llama-3-70b", "trainer=gpu").fits


def test_where_the_whole_copy_of_hf_does_not_fit_servers_are_offered():
    cfg = composed("model=llama-3-70b", "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8")
    assert {"rollout": "vllm_server"} in list(advice.routes(cfg, planned_of(cfg)))


def planned_of(cfg):
    return plan.planned(cfg, KNOWN["h200"], plan.FEW_LAYERS)


def test_advice_to_share_the_weights_is_for_gpus():
    cfg = composed("model=llama-3-70b", "trainer=gpu")
    sharing = [route for route in advice.routes(cfg, planned_of(cfg)) if "trainer.devices" in route]
    assert sharing and all("trainer.accelerator=gpu" in advice.overrides(route) for route in sharing)


def test_ranks_on_a_cpu_share_one_machine():
    """8 ranks: an eighth of the work each, on an eighth of the machine; and a process each."""
    nano = [*SMALL, "model=tiny_random", *NANO_MODEL]
    one, eight = planned(*nano, device=HERE), planned(*nano, "trainer=ddp", "trainer.devices=8", device=HERE)
    assert eight.room == one.room / 8
    assert eight.seconds["update"] >= one.seconds["update"]
    assert eight.seconds["sample"] >= one.seconds["sample"]


def test_coupled_sampling_makes_as_many_calls_on_several_devices():
    """64 prompts, 16 at a time: 4 calls; 4 devices have 4 prompts of each."""
    coupled = ["batch.prompts=64", "batch.sample_prompts=16", "trainer=ddp", "trainer.devices=4"]
    job = job_of(composed(*coupled), HERE)
    assert (job.calls, job.per_call, job.prompts) == (4, 4, 16)


def test_what_goes_between_devices():
    """2 devices, so half of what is moved leaves one; a backward pass gathers twice, and the sharded reference once."""
    sizes = ["model=tiny_random", *NANO_MODEL, "batch.prompts=8", "rollout=vllm_server", "trainer=fsdp"]
    without, with_ = (job_of(composed(*sizes, f"kl='{kl}'"), HERE) for kl in (0, 0.04))
    once = without.parameters * 4
    passes = timing.between_s(without, HERE) * HERE.links[0] / (0.5 * 3 * once)  # twice the weights, once the gradients
    assert passes == pytest.approx(round(passes)) and passes >= 1
    assert timing.between_s(with_, HERE) == pytest.approx(4 / 3 * timing.between_s(without, HERE))
    half = [*sizes, "model.dtype=bfloat16", "kl='0'"]
    gradients = job_of(composed(*half, "trainer=ddp"), HERE)  # master weights: 4 bytes
    steps = gradients.optimizer_steps
    assert timing.between_s(gradients, HERE) == pytest.approx(steps * 4 * gradients.parameters / HERE.links[0])


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("all-linear", 7),
        (["q_proj", "v_proj"], 2),
        (["self_attn.q_proj"], 1),
        ([r"layers.0.self_attn.q_proj"], 0.5),
        (r".*\.(q|k)_proj", 2),
    ],
)
def test_layers_are_named_as_peft_takes_them(targets, layers):
    policy = loading.load_policy("", architecture=NANO)
    assert len(memory.add_adapters(policy, 2, targets)) == 2 * 2 * layers  # two matrices, in two blocks
    peft = pytest.importorskip("peft")
    theirs = loading.load_policy("", architecture=NANO)
    theirs.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    assert sum("lora_" in name for name, _ in theirs.named_parameters()) == 2 * 2 * layers


@pytest.mark.parametrize("targets", [["proj"], "q_proj", "("])
def test_layers_that_are_not_there_are_refused(targets):
    with pytest.raises(UserError, match=r"model\.lora\.target_modules"):
        memory.add_adapters(loading.load_policy("", architecture=NANO), 2, targets)


# --- what is said ------------------------------------------------------------------------------------------------------


def test_70b_is_refused_on_one_h200_with_a_reason():
    cfg = composed(*LLAMA, "plan=true", "plan_device=h200")
    found = plan.planned(cfg, KNOWN["h200"], plan.FEW_LAYERS)
    assert not found.fits
    reason = advice.refusal(found)
    assert "does not fit: update needs 1," in reason and "of the 139.8 GiB of H200 141 GB" in reason
    assert list(advice.routes(cfg, found))[-1]["trainer.devices"] == 8


def test_what_is_advised_fits():
    """A device of 0.9 GiB, where passes of 65,536 tokens do not fit."""
    cfg = composed(
        *SMALL, "model=tiny_random", *NANO_MODEL, "batch.micro_tokens=65536", "batch.prompts=64", "batch.group_size=16"
    )
    small = Device(**(vars(HERE) | {"memory": 0.9 * 2**30}))
    found = plan.planned(cfg, small)
    assert not found.fits
    changes = advice.fitted(cfg, small, {})
    assert changes and plan.planned(plan.changed(cfg, changes), small).fits
    assert next(advice.remedies(cfg, found, composed("rollout=vllm_server").rollout.sampler)) == advice.overrides(changes)


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
        "error: plan=true: plans one run, and -m starts a sweep. Leave -m out, and give the settings of one cell."
    )
    assert not list(tmp_path.rglob("*"))


def test_a_device_that_is_not_here_must_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch finds no GPU on this machine\. Name one with plan_device="):
        advice.device_of(composed("trainer=gpu", "plan=true"))


def test_the_devices_that_can_be_named_are_those_that_are_known():
    assert set(DEVICES) == set(KNOWN)
