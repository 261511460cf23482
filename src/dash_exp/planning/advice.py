"""What `plan=true` does: prints the plan, and where the run does not fit its devices, says what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.planning import memory
from dash_exp.planning.job import GIB, Job, job_of
from dash_exp.planning.machine import KNOWN, Device, this_machine
from dash_exp.planning.plan import FEW_LAYERS, USABLE, VLLM_OVERHEAD, WORDS, Plan, changed, part_of, planned, table

Changes = Mapping[str, Any]
MOST = 3  # ways out that are named
MOST_SHARE = 0.98  # of a GPU, that an engine can have


def show(cfg: DictConfig, served: DictConfig) -> None:
    """Print the plan of a run. Raises UserError, which says what to change, where it does not fit.

    `served`: the settings `rollout.sampler` of `rollout=vllm_server`, which is one of the changes that may help.
    """
    device = device_of(cfg)
    plan = planned(cfg, device)
    print(table(cfg, plan), flush=True)
    if plan.fits:
        return
    lines = [" ".join(words) for words in islice(remedies(cfg, plan, served), MOST)]
    right = ("Write " + ", or ".join(lines)) if lines else "Take a smaller model, shorter completions or more devices"
    raise UserError("plan", refusal(plan), right)


def device_of(cfg: DictConfig) -> Device:
    """The one that is named, or this machine's."""
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
    if plan.peak <= plan.room:
        weights = job.parameters * job.load.compute_dtype.itemsize / GIB
        return (
            f"does not fit: weights of {weights:,.1f} GiB leave an engine of vLLM, which has {job.share:.0%} of one "
            f"{device.name}, room for {plan.tokens_of_cache:,.0f} tokens in its KV cache, and a completion "
            f"with its prompt can have {job.prompt_tokens + job.response:,}"
        )
    phase, parts = max(plan.memory.items(), key=lambda item: sum(item[1].values()))
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{WORDS[name]} {size / GIB:,.1f}" for name, size in largest)
    return (
        f"does not fit: {phase} needs {sum(parts.values()) / GIB:,.1f} GiB a device ({named}), and of the "
        f"{device.memory / GIB:,.1f} GiB of {device.name} {plan.room / GIB:,.1f} can be used"
    )


def remedies(cfg: DictConfig, plan: Plan, served: DictConfig) -> Iterator[list[str]]:
    """Overrides with which it would fit, the smallest changes first; where small ones alone do, no others."""
    for route in routes(cfg, plan):
        if (changes := fitted(cfg, plan.whole, route, served)) is not None:
            yield overrides(changes)
            if not route:
                return


def routes(cfg: DictConfig, plan: Plan) -> Iterator[Changes]:
    """Larger changes, from none on."""
    gpu, full = plan.device.kind == "gpu", not plan.job.load.lora_rank
    yield {}
    half = {"model.dtype": "bfloat16"} if gpu and cfg.model.dtype == "float32" else {}
    if full:
        yield {"model.adapter": "lora"}
        if half:
            yield {"model.adapter": "lora", **half}
    served = {"rollout": "vllm_server"}  # vllm is inside one process, and hf needs the whole model to sample
    if gpu and plan.job.sampler == "hf" and plan.job.load.shards > 1:
        yield served
        if full:
            yield {"model.adapter": "lora", **served, **half}
    for devices in (2, 8) if gpu else ():
        if devices > plan.job.devices:
            sharded: dict[str, Any] = {"trainer.strategy": "fsdp", "trainer.accelerator": "gpu", "trainer.devices": devices}
            if plan.job.sampler != "vllm_server":
                sharded |= served
            if not full or cfg.model.dtype == "float32":
                yield sharded
            else:  # all weights: FSDP keeps no 32-bit copies of those in 16
                yield {**sharded, "model.dtype": "float32"}
            if half or full:
                yield {**sharded, **half} | ({"model.adapter": "lora"} if full else {})


def fitted(cfg: DictConfig, device: Device, route: Changes, served: DictConfig | None = None) -> Changes | None:
    """`route`, with what else it takes to fit: checkpointing, smaller backward passes, fewer completions decoded at a time."""
    changes = dict(route)
    job = job_of(changed(cfg, changes, served), device)
    if hopeless(job, part_of(device, job.devices)):
        return None
    for _ in range(12):
        now = changed(cfg, changes, served)
        plan = planned(now, device, FEW_LAYERS)
        if plan.fits:
            return changes
        sample, update = (sum(plan.memory[phase].values()) > plan.room for phase in ("sample", "update"))
        job = plan.job
        if update and not now.model.gradient_checkpointing:
            changes["model.gradient_checkpointing"] = True
        elif update and now.batch.micro_tokens > job.prompt_tokens + job.response:
            changes["batch.micro_tokens"] = max(now.batch.micro_tokens // 4, job.prompt_tokens + job.response)
        elif sample and job.sampler == "hf" and now.rollout.sampler.max_sequences > 1:
            kept = sum(plan.memory["sample"].get(k, 0.0) for k in memory.SHARDED)
            need = sum(plan.memory["sample"].values()) - kept
            room = max(plan.room - kept, 0.0)
            rows = min(max(batch[1] for batch in job.load.decode), now.rollout.sampler.max_sequences)
            changes["rollout.sampler.max_sequences"] = 2 ** int(math.log2(max(1.0, rows * min(room / need, 0.5))))
        elif not sample and not update and job.sampler.startswith("vllm") and now.rollout.sampler.memory_share < MOST_SHARE:
            changes["rollout.sampler.memory_share"] = round(min(now.rollout.sampler.memory_share + 0.1, MOST_SHARE), 2)
        elif sample and job.sampler == "vllm" and now.rollout.sampler.memory_share > 0.15:
            changes["rollout.sampler.memory_share"] = round(now.rollout.sampler.memory_share - 0.1, 2)
        else:
            return None
    return None


def hopeless(job: Job, device: Device) -> bool:
    """Whether not even what stays fits: on the device of the policy, or on that of an engine."""
    least = memory.static(job.load, job.parameters, job.trained)
    if job.load.shards > 1 and job.sampler == "hf":  # which has the whole model to sample with
        least = max(least, (job.parameters + 2 * job.parameters / job.load.shards) * job.load.dtype.itemsize)
    weights = job.parameters * job.load.compute_dtype.itemsize + VLLM_OVERHEAD
    engine = device.kind == "gpu" and job.sampler.startswith("vllm") and weights > MOST_SHARE * device.memory
    return engine or least > USABLE * device.memory


def overrides(changes: Changes) -> list[str]:
    """As they are written on the command line."""
    words = {"trainer.strategy": "trainer"}  # conf/trainer has a file for it
    return [
        f"{words.get(key, key)}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    ]
