"""Whether a run fits its devices and how long an outer step takes, before weights or data are loaded.

    python train.py ... plan=true                      # on this machine, whose rates are measured in some seconds
    python train.py ... plan=true plan_device=h200     # on other devices (see `machine.KNOWN`)

Memory of the passes is found by running the real update and one step of sampling on tensors without contents (see `memory`),
so it follows the code. What else is held is listed in `held`. Time is estimated from what has to be computed and moved (see
`timing`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from dash_exp.planning.beside import ScorerSizes
from dash_exp.planning.held import PHASES, added_up, in_cpu_memory, in_cpu_memory_beside_gpus, on_device
from dash_exp.planning.job import Job, job_of
from dash_exp.planning.load import Parts
from dash_exp.planning.machine import GIB, Device
from dash_exp.planning.memory import extrapolated_peaks, peaks_of_teacher, scoring_bytes
from dash_exp.planning.timing import seconds

CONTEXT = 1.0 * GIB  # of CUDA and its workspaces
FRAGMENTS = 0.05  # of the memory that changes: gaps that the allocator cannot give out
CHANGING = ("activations", "logits", "KV cache", "gradients", "gathered")
VLLM_OVERHEAD = 2.0 * GIB  # activations and CUDA graphs of an engine, in addition to its weights and KV cache
USABLE = 0.97  # of a device's memory
MOST_LAYERS, FEW_LAYERS = 24, 4  # that are run, for the plan itself and to search for settings that fit


@dataclass(frozen=True)
class Plan:
    """`memory`: bytes of one device by phase (see `held.PHASES`) and part, at the peak of the phase: of the first rank's, which
    has most. `cpu`: bytes of CPU memory that all ranks of a machine with GPUs take, likewise; empty on a CPU, where it is the
    device's memory. `seconds`: of an outer step, by phase.
    """

    job: Job
    device: Device  # the part of a device that one rank has
    whole: Device
    memory: dict[str, Parts]
    cpu: dict[str, Parts]
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
    def cpu_peak(self) -> float:
        """Bytes of CPU memory, beside GPUs, in the phase that needs most."""
        return max((sum(parts.values()) for parts in self.cpu.values()), default=0.0)

    @property
    def fits_cpu(self) -> bool:
        """Whether CPU memory is enough, where it is known."""
        return self.device.cpu_memory is None or self.cpu_peak <= USABLE * self.device.cpu_memory

    @property
    def fits(self) -> bool:
        """Whether every phase fits, and one completion fits the KV cache of an engine."""
        cache = self.cache_tokens is None or self.cache_tokens >= self.job.lengths.sampled
        return self.peak <= self.usable and self.fits_cpu and cache


def planned(cfg: DictConfig, device: Device, layers: int = MOST_LAYERS) -> Plan:
    """The plan of a composed configuration on devices of this kind.

    Memory of a model with more than `layers` layers is extrapolated (see `memory.extrapolated_peaks`). Raises UserError for a
    model that cannot be planned (see `job.job_of`).
    """
    job = job_of(cfg, device)
    whole, device = device, part_of(device, job.devices)
    engine, cache_tokens = engine_of(job, device)
    passes, beside = tensors(job, layers), on_device(job) + ([] if job.load.on_gpu else in_cpu_memory(job))
    memory: dict[str, Parts] = {}
    for phase, of_passes in passes.items():
        awake = job.sampler.beside and (not job.sampler.sleeps or phase in awake_in(job))
        parts = of_passes | added_up(beside, phase) | ({"vLLM": engine} if awake else {})
        memory[phase] = parts | overhead(parts, device)
    return Plan(job, device, whole, memory, cpu_memory(job), seconds(job, device, cache_tokens), cache_tokens)


def awake_in(job: Job) -> tuple[str, ...]:
    """When an engine that sleeps is awake: with several sampling calls in an outer step also in passes between them."""
    return ("sample", "evaluate", "score", "sync", *(("update",) if job.step.calls > 1 else ()))


def tensors(job: Job, layers: int) -> dict[str, dict[str, float]]:
    """Bytes of the passes on one device, by phase and kind, with what is kept from one phase to the next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = extrapolated_peaks(job.load, layers)
        if job.teacher:
            found["sample"] = dict(peaks_of_teacher(job.teacher, job.load, job.lengths.prompt, layers))
        scoring = {"activations": max(map(scoring_bytes, scorers_on_device(job)), default=0.0)}
    lasting = {kind: found["update"].get(kind, 0.0) for kind in ("weights", "reference", "optimizer")}
    gradients = {"gradients": job.trained * job.load.gradient_bytes / job.load.shards}
    shares = job.load.shares
    memory = {
        "load": {kind: lasting[kind] / shares.get(kind, 1.0) for kind in ("weights", "reference")},  # each rank reads all of it
        "sample": lasting | (gradients if job.step.calls > 1 else {}) | found.get("sample", {}),
        "evaluate": lasting | found.get("evaluate", {}),
        "score": lasting | (scoring if job.scorers else found.get("score", {})),
        "update": lasting | dict(found["update"]),
        "step": lasting | gradients,
        "sync": lasting,
        "save": lasting,
    }
    return {phase: parts for phase, parts in memory.items() if phase in phases_of(job)}


def phases_of(job: Job) -> list[str]:
    """The phases in which a device has something of its own: on a GPU not those of CPU memory."""
    without = {"end"} | ({"load", "save"} if job.load.on_gpu else set())
    if job.sampler.kind != "vllm_server":
        without.add("sync")
    if not job.scorers and not job.load.reference_in_reward:
        without.add("score")
    return [phase for phase in PHASES if phase not in without]


def scorers_on_device(job: Job) -> list[ScorerSizes]:
    """The reward models that are on the same device as the policy."""
    return [scorer for scorer in job.scorers if scorer.on_gpu == job.load.on_gpu]


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
    """Bytes that an engine of vLLM takes of a device, and for how many tokens its KV cache has room: 0 and None without one.

    An engine over several GPUs has a part of its weights and of its cache on each.
    """
    if not job.sampler.kind.startswith("vllm"):
        return 0.0, None
    on_gpu = device.kind == "gpu"
    taken = job.sampler.memory_share * device.memory if on_gpu else job.engine_weight_bytes + job.sampler.cpu_cache
    parts = job.sampler.gpus_each
    cache = taken - job.engine_weight_bytes / parts - (VLLM_OVERHEAD if on_gpu else 0.0)
    return taken, max(0.0, parts * cache / (2 * job.size.kv_width * job.size.layers * job.load.compute_dtype.itemsize))


def overhead(parts: Parts, device: Device) -> dict[str, float]:
    """Bytes of what is not a tensor, in a phase that has these tensors."""
    fragments = {"fragments": FRAGMENTS * sum(parts.get(kind, 0.0) for kind in CHANGING)}
    return fragments if device.kind == "cpu" else {**fragments, "CUDA": CONTEXT}


def cpu_memory(job: Job) -> dict[str, Parts]:
    """Bytes of CPU memory by phase and part, of all ranks of a machine with GPUs; nothing on a CPU."""
    if not job.load.on_gpu:
        return {}
    rows, ranks = in_cpu_memory(job) + in_cpu_memory_beside_gpus(job), job.devices // job.nodes
    phases = [phase for phase in PHASES if phase not in ("evaluate", "score", "step")]  # in which it is as in others
    return {phase: added_up(rows, phase, ranks) for phase in phases}
