"""How long an outer step takes: what has to be computed and moved, by the rates of a device and the share that is reached."""

from __future__ import annotations

import math

from dash_exp.planning import memory
from dash_exp.planning.costs import Group, forward_flops, sampling_bytes
from dash_exp.planning.job import Job
from dash_exp.planning.machine import Device

# The share of a device's rates that a phase reaches. CPU: medians of benchmarks/limit.py on the embedded default (update 41 to
# 62%, sampling 21 to 29%). GPU: the update as measured with the shape of Qwen2.5-0.5B on an H200 (README; larger products reach
# more), sampling is a guess.
REACHED = {("cpu", "update"): 0.49, ("cpu", "sample"): 0.23, ("gpu", "update"): 0.2, ("gpu", "sample"): 0.5}
LAYER_S = 1e-3  # a GPU waits so long for Python, a layer and token of Transformers' sampling: 23.6 to 26 ms for 24 layers there
STEP_S = 2e-3  # and a step of an engine: a guess
HTTP = 1e9  # bytes per second, of weights sent to servers


def seconds(job: Job, device: Device, cache: float | None) -> dict[str, float]:
    """Of an outer step, by phase: all completions `job.tokens` long, none dropped by a filter."""
    found = {"sample": sample_s(job, device, cache), "update": update_s(job, device), "sync": sync_s(job, device)}
    if job.devices > 1:
        found["between devices"] = between_s(job, device)
    return found


def rate(job: Job, device: Device) -> float:
    return device.rates[str(job.load.compute_dtype).removeprefix("torch.")]


def update_s(job: Job, device: Device) -> float:
    """Forward 1, backward 2 (1 where only adapters are trained), once more with checkpointing, and 1 of the reference."""
    forward = job.prompts * forward_flops(job.size, Group(job.prompt_tokens, (job.tokens,) * job.group))
    times = 1 + (1 if job.load.lora_rank else 2) + job.load.checkpointing + job.load.reference
    # weights, gradients and two moments, each read and written
    moved = 2 * 4 * job.trained * job.load.dtype.itemsize * job.optimizer_steps / job.load.shards
    computed = job.passes * times * forward / rate(job, device) / REACHED[device.kind, "update"]
    return computed + moved / device.bandwidth


def sample_s(job: Job, device: Device, cache: float | None) -> float:
    """All completions of an outer step. An engine takes in what its KV cache has room for, and goes on with the rest."""
    if job.sampler == "none":
        return 0.0
    at_once = job.decoded
    if cache is not None:
        at_once = max(1, min(at_once, int(cache / (job.prompt_tokens + job.tokens))))
    engines = max(1, job.servers) / job.devices if job.sampler == "vllm_server" else 1.0
    rows = max(1, math.ceil(job.per_call * job.group / engines))  # of a call, on one engine
    waves = [min(at_once, rows - start) for start in range(0, rows, at_once)]
    return job.calls * sum(wave_s(job, device, rows) for rows in waves)


def wave_s(job: Job, device: Device, rows: int) -> float:
    """So many completions, side by side from their first token to their last."""
    groups = [Group(job.prompt_tokens, (job.tokens,) * job.group)] * (rows // job.group)
    if rows % job.group:
        groups.append(Group(job.prompt_tokens, (job.tokens,) * (rows % job.group)))
    flops = sum(forward_flops(job.size, g) for g in groups)
    moved = sampling_bytes(job.size, groups, job.load.compute_dtype.itemsize)
    limit = max(flops / rate(job, device), moved / device.bandwidth) / REACHED[device.kind, "sample"]
    if device.kind == "cpu":
        return limit
    return limit + job.tokens * (LAYER_S * job.size.layers if job.sampler == "hf" else STEP_S)


def sync_s(job: Job, device: Device) -> float:
    """New weights for the sampler."""
    sent = job.trained * 4 if job.load.lora_rank else job.parameters * job.load.compute_dtype.itemsize  # adapters by themselves
    if job.sampler == "vllm":
        return 2 * sent / device.bandwidth + (2 * sent / 50e9 if job.sleeps else 0)  # and to CPU memory and back, over PCIe
    if job.sampler != "vllm_server":
        return 0.0
    # from the first trainer's device to one server after the other; nccl between GPUs, unless older weights wait in CPU memory
    return job.servers * sent / (device.links[1] if device.kind == "gpu" and not job.ahead else HTTP)


def between_s(job: Job, device: Device) -> float:
    """Summing gradients over all devices; with FSDP also gathering the weights, twice for each backward pass, and once those of
    the reference, which with an adapter is the policy itself.
    """
    link = device.links[0] if job.nodes == 1 else device.links[1]
    part = (job.devices - 1) / job.devices
    if job.load.shards == 1:
        return 2 * part * job.trained * memory.gradient_bytes(job.load) * job.optimizer_steps / link
    tokens = job.prompts * (job.prompt_tokens + job.group * job.tokens)
    backward_passes = job.passes * max(1, math.ceil(tokens / job.micro_tokens))
    gathered = job.parameters * job.load.dtype.itemsize
    calls = job.calls if job.sampler == "hf" else 0  # for each the whole model is gathered once
    times = 3 if job.load.reference else 2
    moved = backward_passes * (times * gathered + job.trained * memory.gradient_bytes(job.load)) + calls * gathered
    return part * moved / link
