"""Estimates the seconds of an outer step: what has to be computed and moved, divided by the rates that a device reaches."""

from __future__ import annotations

import math

from dash_exp.planning.costs import Group, forward_flops, sampling_bytes
from dash_exp.planning.job import Job
from dash_exp.planning.machine import Device

# The share of a device's rates that a phase reaches. CPU: medians of benchmarks/limit.py on the embedded default (update 41 to
# 62%, sampling 21 to 29%). GPU: the update as measured with the shape of Qwen2.5-0.5B on an H200 (larger products reach more);
# sampling is a guess.
REACHED = {("cpu", "update"): 0.49, ("cpu", "sample"): 0.23, ("gpu", "update"): 0.2, ("gpu", "sample"): 0.5}
LAYER_S = 1e-3  # a GPU waits this long for Python, per layer and token that Transformers samples: 23.6 to 26 ms for 24 layers
STEP_S = 2e-3  # the same per token of an engine: a guess
FOLDER = 1e9  # bytes per second, of weights that servers read from a folder: a guess
PCIE = 50e9  # bytes per second, between a GPU and CPU memory


def seconds(job: Job, device: Device, cache_tokens: float | None) -> dict[str, float]:
    """Seconds of an outer step by phase, if all completions have `job.lengths.completion` tokens and the filter drops none.

    `cache_tokens`: room in the KV cache of an engine, None where there is none (see `plan.engine_of`).
    """
    found = {"sample": sample_s(job, device, cache_tokens), "update": update_s(job, device), "sync": sync_s(job, device)}
    if job.devices > 1:
        found["between devices"] = between_s(job, device)
    return found


def rate(job: Job, device: Device) -> float:
    """Operations per second of large matrix products, in the dtype that the run computes in."""
    return device.rates[str(job.load.compute_dtype).removeprefix("torch.")]


def update_s(job: Job, device: Device) -> float:
    """Seconds of all optimizer steps.

    In units of a forward pass: 1 forward, 2 backward (1 where only adapters are trained), 1 more with gradient checkpointing,
    1 of the reference.
    """
    load, step = job.load, job.step
    forward = step.prompts * forward_flops(job.size, Group(job.lengths.prompt, (job.lengths.completion,) * step.group))
    passes = 1 + (1 if load.adapters else 2) + load.gradient_checkpointing + load.reference
    computed = step.epochs * passes * forward / rate(job, device) / REACHED[device.kind, "update"]
    # weights, gradients and two moments, each read and written
    moved = 2 * 4 * job.trained * load.dtype.itemsize * step.optimizer_steps / load.shards
    return computed + moved / device.bandwidth


def sample_s(job: Job, device: Device, cache_tokens: float | None) -> float:
    """Seconds of all sampling calls. An engine starts with as many completions as its KV cache has room for, then the rest."""
    sampler, step = job.sampler, job.step
    if sampler.kind == "none":
        return 0.0
    at_once = sampler.max_sequences
    if cache_tokens is not None:
        at_once = max(1, min(at_once, int(cache_tokens / (job.lengths.prompt + job.lengths.completion))))
    # an engine over several GPUs counts as that many
    engines = max(1, sampler.servers * sampler.gpus_each) / job.devices if sampler.kind == "vllm_server" else 1.0
    rows = max(1, math.ceil(step.prompts_per_call * step.group / engines))  # of a call, on one engine
    waves = [min(at_once, rows - start) for start in range(0, rows, at_once)]
    return step.calls * sum(wave_s(job, device, rows) for rows in waves)


def wave_s(job: Job, device: Device, completions: int) -> float:
    """Seconds of so many completions that are decoded at the same time, from their first token to their last."""
    lengths, group = job.lengths, job.step.group
    groups = [Group(lengths.prompt, (lengths.completion,) * group)] * (completions // group)
    if completions % group:
        groups.append(Group(lengths.prompt, (lengths.completion,) * (completions % group)))
    flops = sum(forward_flops(job.size, g) for g in groups)
    moved = sampling_bytes(job.size, groups, job.load.compute_dtype.itemsize)
    limit = max(flops / rate(job, device), moved / device.bandwidth) / REACHED[device.kind, "sample"]
    if device.kind == "cpu":
        return limit
    return limit + lengths.completion * (LAYER_S * job.size.layers if job.sampler.kind == "hf" else STEP_S)


def sync_s(job: Job, device: Device) -> float:
    """Seconds to give the sampler the new weights: those of the adapters where there are some, otherwise all."""
    sent = job.trained * 4 if job.load.adapters else job.engine_weight_bytes
    kept = 2 * job.engine_weight_bytes / PCIE if job.weights_kept_asleep else 0.0  # to CPU memory and back
    if job.sampler.kind == "vllm":
        return 2 * sent / device.bandwidth + kept
    if job.sampler.kind != "vllm_server":
        return 0.0
    if device.kind == "gpu" and not job.staleness and job.sampler.transfer != "folder":  # stale weights wait in CPU memory
        return job.sampler.servers * sent / device.links[1]  # by NCCL, all from the first trainer's device
    return sent / FOLDER + kept  # all servers read it at the same time


def between_s(job: Job, device: Device) -> float:
    """Seconds to exchange gradients and weights between devices.

    Gradients are summed over all devices. FSDP also gathers the weights, twice for each backward pass, and once those of the
    reference, which with adapters is the policy itself.
    """
    load, step = job.load, job.step
    link = device.links[0] if job.nodes == 1 else device.links[1]
    part = (job.devices - 1) / job.devices
    gradients = job.trained * load.gradient_bytes
    if load.shards == 1:
        return 2 * part * gradients * step.optimizer_steps / link
    tokens = step.prompts * (job.lengths.prompt + step.group * job.lengths.completion)
    backward_passes = step.epochs * max(1, math.ceil(tokens / step.micro_tokens))
    calls = step.calls if job.sampler.kind == "hf" else 0  # for each the whole model is gathered once
    gathers = 3 if load.reference else 2
    moved = backward_passes * (gathers * job.model_bytes + gradients) + calls * job.model_bytes
    return part * moved / link
