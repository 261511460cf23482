"""`plan=true`: prints the plan of a run, and if the run does not fit its devices, says which settings to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.planning.job import Job, job_of
from dash_exp.planning.load import SHARDED
from dash_exp.planning.machine import GIB, KNOWN, Device, this_machine
from dash_exp.planning.plan import FEW_LAYERS, USABLE, VLLM_OVERHEAD, Plan, part_of, planned
from dash_exp.planning.table import WORDS, table
from dash_exp.settings.checks import shown

Changes = Mapping[str, Any]  # values by dotted setting
MOST_REMEDIES = 3  # that are printed
MOST_SHARE = 0.98  # of a GPU, that an engine can have


def show(cfg: DictConfig, served: DictConfig) -> None:
    """Print the plan of a run. Raises UserError, which says what to change, where it does not fit.

    `served`: the settings `rollout.sampler` of `rollout=vllm_server`, which is one of the changes that may help.
    """
    plan = planned(cfg, device_of(cfg))
    print(table(cfg, plan), flush=True)
    if plan.fits:
        return
    lines = [" ".join(words) for words in islice(remedies(cfg, plan, served), MOST_REMEDIES)]
    advice = ("Write " + ", or ".join(lines)) if lines else "Take a smaller model, shorter completions or more devices"
    raise UserError("plan", refusal(plan), advice)


def device_of(cfg: DictConfig) -> Device:
    """The device that `plan_device` names, or this machine's. UserError where it has no GPU and one is asked for."""
    if cfg.plan_device is not None:
        return KNOWN[cfg.plan_device]
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        known = ", ".join(KNOWN)
        raise UserError(
            "plan=true", "torch finds no GPU on this machine", f"Name one with plan_device= ({known}), or use trainer=cpu"
        )
    return this_machine(cfg.trainer.accelerator, cfg.model.compute_dtype)


def refusal(plan: Plan) -> str:
    """What does not fit, and why."""
    job, device = plan.job, plan.device
    if plan.peak <= plan.usable and plan.fits_cpu:
        return (
            f"does not fit: an engine of vLLM has {job.sampler.memory_share:.0%} of one {device.name}. Weights of "
            f"{job.engine_weight_bytes / GIB:,.1f} GiB leave room for {plan.cache_tokens:,.0f} tokens in its KV cache, "
            f"and a completion with its prompt can have {job.lengths.sampled:,}"
        )
    in_gpu = plan.peak > plan.usable
    phase, parts = max((plan.memory if in_gpu else plan.cpu).items(), key=lambda item: sum(item[1].values()))
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{WORDS[name]} {size / GIB:,.1f}" for name, size in largest)
    if not in_gpu:
        assert device.cpu_memory is not None
        return (
            f"does not fit: {phase} needs {sum(parts.values()) / GIB:,.1f} GiB of CPU memory ({named}), and of the "
            f"{device.cpu_memory / GIB:,.1f} GiB that are free {USABLE * device.cpu_memory / GIB:,.1f} can be used"
        )
    return (
        f"does not fit: {phase} needs {sum(parts.values()) / GIB:,.1f} GiB per device ({named}), and of the "
        f"{device.memory / GIB:,.1f} GiB of {device.name} {plan.usable / GIB:,.1f} can be used"
    )


def remedies(cfg: DictConfig, plan: Plan, served: DictConfig) -> Iterator[list[str]]:
    """Overrides with which the run would fit, the smallest changes first; nothing else where these alone are enough."""
    for route in routes(cfg, plan):
        if (changes := fitted(cfg, plan.whole, route, served)) is not None:
            yield overrides(changes)
            if not route:
                return


def routes(cfg: DictConfig, plan: Plan) -> Iterator[Changes]:
    """Large changes to start from, none first: adapters, 16 bits, servers that sample, more devices."""
    job, gpu, full = plan.job, plan.device.kind == "gpu", plan.job.load.adapters is None
    yield {}
    half = {"model.dtype": "bfloat16"} if gpu and cfg.model.dtype == "float32" else {}
    if full:
        yield {"model.adapter": "lora"}
        if half:
            yield {"model.adapter": "lora", **half}
    served = {"rollout": "vllm_server"}  # vllm runs inside one process, and hf needs the whole model to sample
    if gpu and job.sampler.kind == "hf" and job.load.shards > 1:
        yield served
        if full:
            yield {"model.adapter": "lora", **served, **half}
    for devices in (2, 8) if gpu else ():
        if devices > job.devices:
            sharded: dict[str, Any] = {"trainer.strategy": "fsdp", "trainer.accelerator": "gpu", "trainer.devices": devices}
            if job.sampler.kind != "vllm_server":
                sharded |= served
            if not full or cfg.model.dtype == "float32":
                yield sharded
            else:  # all weights are trained: FSDP keeps no 32-bit copies of weights in 16 bits
                yield {**sharded, "model.dtype": "float32"}
            if half or full:
                yield {**sharded, **half} | ({"model.adapter": "lora"} if full else {})


def fitted(cfg: DictConfig, device: Device, route: Changes, served: DictConfig | None = None) -> Changes | None:
    """`route` with the smaller changes that make the run fit; None where nothing does."""
    changes = dict(route)
    job = job_of(changed(cfg, changes, served), device)
    if hopeless(job, part_of(device, job.devices)):
        return None
    for _ in range(12):
        now = changed(cfg, changes, served)
        plan = planned(now, device, FEW_LAYERS)
        if plan.fits:
            return changes
        more = smaller_change(now, plan)
        if more is None:
            return None
        changes |= more
    return None


def smaller_change(cfg: DictConfig, plan: Plan) -> Changes | None:
    """One more change for a plan that does not fit: checkpointing, smaller backward passes, fewer completions decoded at the
    same time, or another share of the GPU for an engine. None where there is none left.
    """
    job, sampler = plan.job, cfg.rollout.sampler
    if not plan.fits_cpu and (less := fewer_snapshots(cfg, plan)):
        return less
    needed = {phase: sum(plan.memory[phase].values()) for phase in ("sample", "evaluate", "update")}
    update = needed["update"] > plan.usable
    decoding = max(("sample", "evaluate"), key=lambda phase: needed[phase])
    sample = needed[decoding] > plan.usable
    if update and not cfg.model.gradient_checkpointing:
        return {"model.gradient_checkpointing": True}
    if update and cfg.batch.micro_tokens > job.lengths.sequence:
        return {"batch.micro_tokens": max(cfg.batch.micro_tokens // 4, job.lengths.sequence)}
    if sample and job.sampler.kind == "hf" and sampler.max_sequences > 1:
        lasting = sum(plan.memory[decoding].get(k, 0.0) for k in SHARDED)
        changing, free = needed[decoding] - lasting, max(plan.usable - lasting, 0.0)
        rows = min(max(batch.completions for batch in job.load.decode), sampler.max_sequences)
        return {"rollout.sampler.max_sequences": 2 ** int(math.log2(max(1.0, rows * min(free / changing, 0.5))))}
    if not sample and not update and job.sampler.kind.startswith("vllm") and sampler.memory_share < MOST_SHARE:
        return {"rollout.sampler.memory_share": round(min(sampler.memory_share + 0.1, MOST_SHARE), 2)}
    if (sample or (update and "vLLM" in plan.memory["update"])) and job.sampler.beside and sampler.memory_share > 0.15:
        return {"rollout.sampler.memory_share": round(sampler.memory_share - 0.1, 2)}
    return None


def fewer_snapshots(cfg: DictConfig, plan: Plan) -> Changes | None:
    """Where CPU memory is short: no snapshot is read at the start, or none is written beside training, whichever helps."""
    phase = max(plan.cpu, key=lambda name: sum(plan.cpu[name].values()))
    if cfg.resume and "snapshot" in plan.cpu[phase]:
        return {"resume": False}
    if cfg.resume_every is not None and "snapshot beside" in plan.cpu[phase]:
        return {"resume_every": None}
    return None


def hopeless(job: Job, device: Device) -> bool:
    """Whether not even what is always in memory fits: on the device of the policy, or on that of an engine."""
    least = job.load.lasting_bytes(job.parameters, job.trained)
    if job.load.shards > 1 and job.sampler.kind == "hf":  # which gathers the whole model to sample
        least = max(least, (1 + 2 / job.load.shards) * job.model_bytes)
    uses_engine = device.kind == "gpu" and job.sampler.kind.startswith("vllm")
    engine = uses_engine and job.engine_weight_bytes + VLLM_OVERHEAD > MOST_SHARE * device.memory
    return engine or least > USABLE * device.memory


def changed(cfg: DictConfig, changes: Changes, served: DictConfig | None = None) -> DictConfig:
    """A copy of the configuration with other values. `rollout` among them: the sampler gets the settings `served`."""
    copy = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    for key, value in changes.items():
        if key == "rollout":
            assert served is not None, f"the settings of rollout={value} are needed"
            copy.rollout.sampler = served
        else:
            OmegaConf.update(copy, key, value, force_add=True)
    assert isinstance(copy, DictConfig)
    return copy


def overrides(changes: Changes) -> list[str]:
    """The changes as they are written on the command line."""
    words = {"trainer.strategy": "trainer"}  # conf/trainer has a file for it
    return [f"{words.get(key, key)}={shown(value)}" for key, value in changes.items()]
