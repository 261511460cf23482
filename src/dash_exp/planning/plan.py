"""Whether a run fits its devices, and how long an outer step takes: said before weights or data are loaded.

    python train.py ... plan=true                      # on this machine, whose rates are measured in some seconds
    python train.py ... plan=true plan_device=h200     # on other devices; see `machine.KNOWN`

Memory is found by running the real update and one step of sampling on tensors without contents (`memory.peaks`), so it follows
the code. Time is reckoned: what has to be computed and moved, by the rates of the device and the share of them that is reached.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.planning import memory
from dash_exp.planning.job import GIB, Job, job_of
from dash_exp.planning.machine import Device
from dash_exp.planning.memory import Parts
from dash_exp.planning.timing import REACHED, rate, seconds
from dash_exp.training.rollout import BYTES_PER_COMPLETION, BYTES_PER_TOKEN

# What no tensor shows, in bytes. On a CPU: libraries, then what is loaded on first use, problems, and what the allocator keeps.
# Of the embedded default: 125 MiB more than its tensors when it is built, and some 100 that stay taken later.
LIBRARIES, PROCESS = 535 * 2**20, 225 * 2**20
CONTEXT = 1.0 * GIB  # of CUDA and its workspaces
FRAGMENTS = 0.05  # of what comes and goes: gaps that the allocator cannot give out
VLLM_OVERHEAD = 2.0 * GIB  # activations and CUDA graphs of an engine, beside its weights and KV cache
USABLE = 0.97  # of a device's memory
MOST_LAYERS, FEW_LAYERS = 24, 4  # that are run, for the plan itself and to look for what would fit


@dataclass(frozen=True)
class Plan:
    """`memory`: bytes of one device by phase and part, at the peak of the phase. `seconds` of an outer step by phase."""

    job: Job
    device: Device  # what one rank has
    whole: Device  # what it is a part of, on a CPU
    memory: dict[str, Parts]
    cpu: Parts
    seconds: dict[str, float]
    tokens_of_cache: float | None

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def room(self) -> float:
        return USABLE * self.device.memory

    @property
    def fits(self) -> bool:
        cache = self.tokens_of_cache is None or self.tokens_of_cache >= self.job.prompt_tokens + self.job.response
        return self.peak <= self.room and cache


def planned(cfg: DictConfig, device: Device, layers: int = MOST_LAYERS) -> Plan:
    """The plan of a run on devices of this kind; memory of deeper models is extrapolated from so many layers."""
    job = job_of(cfg, device)
    whole, device = device, part_of(device, job.devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = memory.deep(job.load, layers)
    kept = {kind: found["update"].get(kind, 0.0) for kind in ("weights", "reference", "optimizer")}
    found = {"sample": kept} | found  # where another engine samples, that is all
    engine, cache = engine_of(job, device)
    if job.sampler == "vllm":
        for phase in ["sample"] if job.sleeps else ["sample", "update"]:
            found[phase] = {**found[phase], "vLLM": engine}
    found = {phase: {**parts, **overhead(parts, device)} for phase, parts in found.items()}
    return Plan(job, device, whole, found, cpu_memory(job, device), seconds(job, device, cache), cache)


def part_of(device: Device, ranks: int) -> Device:
    """What a rank has of a device: all of a GPU, for each has its own; of a CPU its share, for they are on one machine."""
    if device.kind == "gpu" or ranks == 1:
        return device
    rates = {dtype: each / ranks for dtype, each in device.rates.items()}
    return replace(
        device,
        name=f"1/{ranks} of {device.name}",
        memory=device.memory / ranks,
        rates=rates,
        bandwidth=device.bandwidth / ranks,
        links=(device.links[0] / ranks, device.links[1]),
    )


def engine_of(job: Job, device: Device) -> tuple[float, float | None]:
    """Bytes that an engine of vLLM takes of a device, and for how many tokens its KV cache has room; None without one."""
    if not job.sampler.startswith("vllm"):
        return 0.0, None
    weights = job.parameters * job.load.compute_dtype.itemsize
    taken = job.share * device.memory if device.kind == "gpu" else weights + job.cpu_cache
    room = taken - weights - (VLLM_OVERHEAD if device.kind == "gpu" else 0.0)
    return taken, max(0.0, room / (2 * job.size.kv_width * job.size.layers * job.load.compute_dtype.itemsize))


def overhead(parts: Parts, device: Device) -> dict[str, float]:
    """What no tensor shows."""
    moving = sum(n for kind, n in parts.items() if kind in ("activations", "logits", "KV cache", "gradients", "gathered"))
    fragments = {"fragments": FRAGMENTS * moving}
    if device.kind == "cpu":
        return {**fragments, "libraries": LIBRARIES, "process": PROCESS}
    return {**fragments, "CUDA": CONTEXT}


def cpu_memory(job: Job, device: Device) -> dict[str, float]:
    """Beside the devices: completions at their longest, and weights that wait."""
    completions = job.prompts * job.group * (job.ahead + 1)
    parts: dict[str, float] = {"rollouts": completions * (job.response * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)}
    if device.kind == "gpu":
        parts |= {"libraries": LIBRARIES + PROCESS}
        if job.sampler == "vllm" and job.sleeps:
            parts |= {"vLLM asleep": job.parameters * job.load.compute_dtype.itemsize}
    if job.devices > 1:  # each rank loads the whole model before it keeps its part
        parts |= {"weights while loading": job.devices / job.nodes * job.parameters * job.load.dtype.itemsize}
    if job.ahead:
        parts |= {"older weights": (job.ahead + 1) * job.parameters * job.load.dtype.itemsize}
    return parts


def changed(cfg: DictConfig, changes: Mapping[str, Any], served: DictConfig | None = None) -> DictConfig:
    """A copy with other values. With `rollout` among them the sampler has the settings `served`."""
    copy = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    for key, value in changes.items():
        if key == "rollout":
            assert served is not None, f"the settings of rollout={value} are needed"
            copy.rollout.sampler = served
        else:
            OmegaConf.update(copy, key, value, force_add=True)
    assert isinstance(copy, DictConfig)
    return copy


# --- what is said --------------------------------------------------------------------------------------------------------

WORDS = {  # for the parts, in the order of the table
    "weights": "weights",
    "gradients": "gradients, as far as made",
    "optimizer": "optimizer: two moments",
    "reference": "reference model",
    "activations": "activations",
    "logits": "logits",
    "KV cache": "KV cache",
    "gathered": "blocks gathered (FSDP)",
    "vLLM": "vLLM: weights, KV cache",
    "fragments": "gaps of the allocator (assumed)",
    "CUDA": "CUDA, workspaces (assumed)",
    "libraries": "libraries (as measured)",
    "process": "problems, buffers (assumed)",
}


def table(cfg: DictConfig, plan: Plan) -> str:
    """The plan for people."""
    job, device = plan.job, plan.device
    phases = list(plan.memory)
    many = f"{job.devices} x " if job.devices > 1 else ""
    how = f" ({cfg.trainer.strategy})" if job.devices > 1 else ""
    adapters = f", of which LoRA trains {job.trained:,} more" if job.load.lora_rank else ""
    lines = [
        f"plan: {cfg.algo.name} on {cfg.data.name}, {cfg.model.name} ({job.parameters:,} parameters{adapters}), "
        f"{many}{device.name}{how}",
        f"{'memory of a device at the peak of a phase, GiB':48}" + "".join(f"{p:>12}" for p in phases),
    ]
    for part, words in WORDS.items():
        sizes = [plan.memory[p].get(part, 0.0) / GIB for p in phases]
        if any(sizes):
            lines.append(f"  {words:46}" + "".join(f"{s:12.3f}" if s else f"{'-':>12}" for s in sizes))
    lines.append(f"  {'together':46}" + "".join(f"{sum(plan.memory[p].values()) / GIB:12.3f}" for p in phases))
    share = plan.peak / device.memory
    lines.append(
        f"  {'of ' + format(device.memory / GIB, '.1f') + ' GiB':46}{share:12.0%}  {'fits' if plan.fits else 'DOES NOT FIT'}"
    )
    beside = ", ".join(f"{name} {size / GIB:.3f}" for name, size in plan.cpu.items())
    lines.append(f"CPU memory {'beside' if device.kind == 'gpu' else 'in it'}, GiB: {beside}")
    total = sum(plan.seconds.values())
    lines.append(
        f"time of an outer step, seconds: {total:,.3g} = "
        + " + ".join(f"{name} {s:,.3g}" for name, s in plan.seconds.items())
        + f"; {cfg.steps} steps {_duration(total * cfg.steps)}"
    )
    return "\n".join([*lines, *assumptions(plan)])


def assumptions(plan: Plan) -> list[str]:
    """What the plan rests on."""
    job, device, load = plan.job, plan.device, plan.job.load
    rows, _, total, prompts = load.update
    dtype = str(load.compute_dtype).removeprefix("torch.")
    update, sample = (REACHED[device.kind, phase] for phase in ("update", "sample"))
    lines = [
        "assumed:",
        f"  device     {rate(job, device) / 1e12:,.3g} TFLOP/s in {dtype}, {device.bandwidth / 1e9:,.0f} GB/s",
        f"             ({device.source})",
        f"  reached    {update:.0%} of it in the update, {sample:.0%} in sampling "
        + (
            "(measured: benchmarks/limit.py, embedded default)"
            if device.kind == "cpu"
            else "(the first measured at 0.5B on an H200, the second a guess)"
        ),
        f"  lengths    prompts of {job.prompt_tokens} tokens; completions of {job.response} for memory, {job.tokens} for time",
        "             (plan_tokens=... for their mean); the filter drops none",
        f"  update     {rows} completions of {prompts} prompt(s) in a backward pass, "
        f"{total + prompts * job.prompt_tokens:,} tokens, " + ("no padding" if load.packed else "padded"),
    ]
    if load.decode:
        _, decoded, _, shown = max(load.decode, key=lambda batch: batch[1] * (batch[2] + batch[3]))
        lines.append(
            f"  sampling   up to {decoded} completions decoded at a time, prompts of {shown} tokens; evaluation included"
        )
    if plan.tokens_of_cache is not None:
        at_once = int(plan.tokens_of_cache / (job.prompt_tokens + job.tokens))
        lines.append(
            f"  sampling   KV cache for {plan.tokens_of_cache:,.0f} tokens, {at_once} completions at a time, "
            f"of at most {job.decoded}"
        )
    if job.devices > 1:
        lines.append(
            f"  between    {device.links[0] / 1e9:.0f} GB/s in a machine, {device.links[1] / 1e9:.0f} GB/s between machines, "
            "each direction, fully used and not hidden behind the work"
        )
    return lines


def _duration(total_s: float) -> str:
    return f"{total_s / 3600:,.1f} h" if total_s >= 3600 else f"{total_s / 60:,.1f} min"
