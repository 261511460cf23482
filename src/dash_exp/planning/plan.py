"""Whether a run fits its devices and how long an outer step takes, before weights or data are loaded.

    python train.py ... plan=true                      # on this machine, whose rates are measured in some seconds
    python train.py ... plan=true plan_device=h200     # on other devices (see `machine.KNOWN`)

Memory is found by running the real update and one step of sampling on tensors without contents (see `memory`), so it follows
the code. Time is estimated from what has to be computed and moved (see `timing`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from dash_exp.planning.job import GIB, Job, job_of
from dash_exp.planning.load import Parts
from dash_exp.planning.machine import Device
from dash_exp.planning.memory import extrapolated_peaks
from dash_exp.planning.timing import seconds
from dash_exp.training.rollout import BYTES_PER_COMPLETION, BYTES_PER_TOKEN

# What is not a tensor, in bytes. On a CPU: libraries; then what is loaded on first use, problems, and what the allocator keeps.
# Of the embedded default: 125 MiB more than its tensors when it is built, and some 100 that stay allocated later.
LIBRARIES, PROCESS = 535 * 2**20, 225 * 2**20
CONTEXT = 1.0 * GIB  # of CUDA and its workspaces
FRAGMENTS = 0.05  # of the memory that changes: gaps that the allocator cannot give out
CHANGING = ("activations", "logits", "KV cache", "gradients", "gathered")
VLLM_OVERHEAD = 2.0 * GIB  # activations and CUDA graphs of an engine, in addition to its weights and KV cache
USABLE = 0.97  # of a device's memory
MOST_LAYERS, FEW_LAYERS = 24, 4  # that are run, for the plan itself and to search for settings that fit


@dataclass(frozen=True)
class Plan:
    """`memory`: bytes of one device by phase and part, at the peak of the phase. `seconds`: of an outer step, by phase."""

    job: Job
    device: Device  # the part of a device that one rank has
    whole: Device
    memory: dict[str, Parts]
    cpu: Parts  # bytes of CPU memory
    seconds: dict[str, float]
    cache_tokens: float | None  # room in the KV cache of an engine

    @property
    def peak(self) -> float:
        """Bytes of the phase that needs most."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def usable(self) -> float:
        """Bytes of the device that a run can use."""
        return USABLE * self.device.memory

    @property
    def fits(self) -> bool:
        """Whether every phase fits, and one completion fits the KV cache of an engine."""
        cache = self.cache_tokens is None or self.cache_tokens >= self.job.lengths.sequence
        return self.peak <= self.usable and cache


def planned(cfg: DictConfig, device: Device, layers: int = MOST_LAYERS) -> Plan:
    """The plan of a composed configuration on devices of this kind.

    Memory of a model with more than `layers` layers is extrapolated (see `memory.extrapolated_peaks`). Raises UserError for a
    model that cannot be planned (see `job.job_of`).
    """
    job = job_of(cfg, device)
    whole, device = device, part_of(device, job.devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = extrapolated_peaks(job.load, layers)
    lasting = {kind: memory["update"].get(kind, 0.0) for kind in ("weights", "reference", "optimizer")}
    memory = {"sample": lasting} | memory  # where another engine samples, nothing else is in memory
    engine, cache_tokens = engine_of(job, device)
    if job.sampler.kind == "vllm":
        for phase in ["sample"] if job.sampler.sleeps else ["sample", "update"]:
            memory[phase] = {**memory[phase], "vLLM": engine}
    memory = {phase: {**parts, **overhead(parts, device)} for phase, parts in memory.items()}
    return Plan(job, device, whole, memory, cpu_memory(job, device), seconds(job, device, cache_tokens), cache_tokens)


def part_of(device: Device, ranks: int) -> Device:
    """What one rank has of a device: a GPU of its own, or its share of the CPU that all ranks run on."""
    if device.kind == "gpu" or ranks == 1:
        return device
    return replace(
        device,
        name=f"1/{ranks} of {device.name}",
        memory=device.memory / ranks,
        rates={dtype: each / ranks for dtype, each in device.rates.items()},
        bandwidth=device.bandwidth / ranks,
        links=(device.links[0] / ranks, device.links[1]),
    )


def engine_of(job: Job, device: Device) -> tuple[float, float | None]:
    """Bytes that an engine of vLLM takes of a device, and for how many tokens its KV cache has room: 0 and None without one."""
    if not job.sampler.kind.startswith("vllm"):
        return 0.0, None
    on_gpu = device.kind == "gpu"
    taken = job.sampler.memory_share * device.memory if on_gpu else job.engine_weight_bytes + job.sampler.cpu_cache
    cache = taken - job.engine_weight_bytes - (VLLM_OVERHEAD if on_gpu else 0.0)
    return taken, max(0.0, cache / (2 * job.size.kv_width * job.size.layers * job.load.compute_dtype.itemsize))


def overhead(parts: Parts, device: Device) -> dict[str, float]:
    """Bytes of what is not a tensor, in a phase that has these tensors."""
    fragments = {"fragments": FRAGMENTS * sum(parts.get(kind, 0.0) for kind in CHANGING)}
    if device.kind == "cpu":
        return {**fragments, "libraries": LIBRARIES, "process": PROCESS}
    return {**fragments, "CUDA": CONTEXT}


def cpu_memory(job: Job, device: Device) -> dict[str, float]:
    """Bytes of CPU memory: completions at their longest, weights that wait, and on a GPU machine the process."""
    completions = job.step.prompts * job.step.group * (job.staleness + 1)
    parts: dict[str, float] = {"rollouts": completions * (job.lengths.longest * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)}
    if device.kind == "gpu":
        parts |= {"libraries": LIBRARIES + PROCESS}
        if job.sampler.kind == "vllm" and job.sampler.sleeps:
            parts |= {"vLLM asleep": job.engine_weight_bytes}
    if job.devices > 1:  # each rank loads the whole model before it keeps its part
        parts |= {"weights while loading": job.devices / job.nodes * job.model_bytes}
    if job.staleness:
        parts |= {"stale weights": (job.staleness + 1) * job.model_bytes}
    return parts
