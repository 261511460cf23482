"""Whether a run fits its devices, and how long an outer step takes: said before weights or data are loaded.

    python train.py ... plan=true                      # on this machine, whose rates are measured in some seconds
    python train.py ... plan=true plan_device=h200     # on other devices; see `machine.KNOWN`

Memory is found by running the real update and one step of sampling on tensors without contents (`memory.peaks`), so it follows
the code. Time is reckoned: what has to be computed and moved, by the rates of the device and the share of them that is reached.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from dash_exp import cli, memory, model
from dash_exp.costs import Group, Size, forward_flops, sampling_bytes, size_of
from dash_exp.errors import UserError
from dash_exp.machine import KNOWN, Device, this_machine
from dash_exp.memory import Parts
from dash_exp.rollout import BYTES_PER_COMPLETION, BYTES_PER_TOKEN

GIB = 2**30

# The shapes of models that conf/model/ names, as their config.json has them: a plan needs no network.
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    name: family
    | dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), sizes, strict=True))
    | {"max_position_embeddings": context}
    for name, family, sizes, context in (
        ("Qwen/Qwen2.5-0.5B", _QWEN, (896, 4864, 24, 14), 32768),
        ("Qwen/Qwen2.5-1.5B", _QWEN, (1536, 8960, 28, 12), 131072),
        ("Qwen/Qwen2.5-3B", _QWEN, (2048, 11008, 36, 16), 32768),
        ("meta-llama/Meta-Llama-3-8B", _LLAMA, (4096, 14336, 32, 32), 8192),
        ("meta-llama/Meta-Llama-3-70B", _LLAMA, (8192, 28672, 80, 64), 8192),
    )
}

# What no tensor shows, in bytes. On a CPU: libraries, then what is loaded on first use, problems, and what the allocator keeps.
# Of the embedded default: 125 MiB more than its tensors when it is built, and some 100 that stay taken later.
LIBRARIES, PROCESS = 535 * 2**20, 225 * 2**20
CONTEXT = 1.0 * GIB  # of CUDA and its workspaces
FRAGMENTS = 0.05  # of what comes and goes: gaps that the allocator cannot give out
VLLM_OVERHEAD = 2.0 * GIB  # activations and CUDA graphs of an engine, beside its weights and KV cache
USABLE = 0.97  # of a device's memory
MOST_SHARE = 0.98  # that an engine can have of a GPU
MOST_LAYERS, FEW_LAYERS = 24, 4  # that are run, for the plan itself and to look for what would fit

# The share of a device's rates that a phase reaches. CPU: medians of benchmarks/limit.py on the embedded default (update 41 to
# 62%, sampling 21 to 29%). GPU: the update as measured with the shape of Qwen2.5-0.5B on an H200 (README; larger products reach
# more), sampling is a guess.
REACHED = {("cpu", "update"): 0.49, ("cpu", "sample"): 0.23, ("gpu", "update"): 0.2, ("gpu", "sample"): 0.5}
LAYER_S = 1e-3  # a GPU waits so long for Python, a layer and token of Transformers' sampling: 23.6 to 26 ms for 24 layers there
STEP_S = 2e-3  # and a step of an engine: a guess
HTTP = 1e9  # bytes per second, of weights sent to servers


@dataclass(frozen=True)
class Job:
    """The sizes of a run that memory and time follow from, per device where they are divided."""

    load: memory.Load
    size: Size
    parameters: int
    trained: int
    devices: int
    nodes: int
    prompts: int  # of an outer step, on one device
    group: int
    calls: int  # of the sampler, in an outer step
    per_call: int  # prompts of a call, on one device
    prompt_tokens: int
    tokens: int  # of a completion, for time
    passes: int
    optimizer_steps: int
    micro_tokens: int
    sampler: str  # hf, vllm or vllm_server
    decoded: int  # completions at a time
    share: float  # of a GPU, for an engine
    sleeps: bool
    servers: int
    cpu_cache: float
    response: int
    ahead: int


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


def show(cfg: DictConfig) -> None:
    """Print the plan of a run. Raises UserError, which says what to change, where it does not fit."""
    device = device_of(cfg)
    plan = planned(cfg, device)
    print(table(cfg, plan), flush=True)
    if plan.fits:
        return
    found = list(remedies(cfg, plan))
    lines = [" ".join(overrides) for overrides in found]
    right = ("Write " + ", or ".join(lines)) if lines else "Take a smaller model, shorter completions or more devices"
    raise UserError("plan", refusal(plan), right)


def device_of(cfg: DictConfig) -> Device:
    name = cfg.get("plan_device")
    if name is None:
        if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
            known = ", ".join(KNOWN)
            raise UserError(
                "plan=true", "torch finds no GPU on this machine", f"Name one with plan_device= ({known}), or use trainer=cpu"
            )
        return this_machine(cfg.trainer.accelerator, cfg.model.compute_dtype)
    return KNOWN[str(name)]


def planned(cfg: DictConfig, device: Device, layers: int = MOST_LAYERS) -> Plan:
    """The plan of a run on devices of this kind; memory of deeper models is extrapolated from so many layers."""
    job = job_of(cfg, device)
    whole, device = device, part_of(device, job.devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dict(memory.deep(job.load, layers))
    if "sample" not in found:
        kept = {kind: found["update"].get(kind, 0.0) for kind in ("weights", "reference", "optimizer")}
        found = {"sample": kept, **found}
    engine, cache = engine_of(job, device)
    if job.sampler == "vllm":
        found["sample"] = {**found["sample"], "vLLM": engine}
        if not job.sleeps:
            found["update"] = {**found["update"], "vLLM": engine}
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


# --- the sizes -----------------------------------------------------------------------------------------------------------


def architecture(cfg: DictConfig) -> PreTrainedModel:
    """The model on the meta device: from model.architecture, a table of known ones, a folder, or the hub."""
    given = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else SHAPES.get(cfg.model.path)
    return _made(cfg.model.path, json.dumps(given), cfg.model.trust_remote_code)


@lru_cache
def _made(path: str, given: str, trust_remote_code: bool) -> PreTrainedModel:
    return model.load_architecture(path, json.loads(given), trust_remote_code)


def masters(cfg: DictConfig) -> bool:
    """Whether what is trained in 16 bits is kept in 32 as well. Adapters are in 32 by themselves."""
    return cfg.model.get("adapter") != "lora" and cfg.model.dtype != "float32" and bool(cfg.model.get("master_weights"))


def moments(cfg: DictConfig) -> int:
    """Bytes of the optimizer's two moments for each weight that is trained: of its kind, or of 8 bits (bitsandbytes)."""
    if "8bit" in str(cfg.optimizer._target_):
        return 2
    return 8 if cfg.model.get("adapter") == "lora" or cfg.model.dtype == "float32" or masters(cfg) else 4


def job_of(cfg: DictConfig, device: Device) -> Job:
    """What the settings come to on one device."""
    made = architecture(cfg)
    size = size_of(made)
    nodes = int(cfg.trainer.get("num_nodes") or 1)
    devices = int(cfg.trainer.devices) * nodes
    sharded = cfg.trainer.get("strategy") == "fsdp"
    sampler = cfg.rollout.sampler
    kind = {"HFSampler": "hf", "VLLMSampler": "vllm"}.get(str(sampler._target_).rpartition(".")[2], "vllm_server")
    prompts = -(-cfg.batch.prompts // devices)
    group, longest, shown = int(cfg.algo.group_size), int(cfg.rollout.max_response_tokens), prompt_tokens(cfg.data.train, cfg)
    at_a_time = min(int(cfg.batch.sample_prompts or cfg.batch.prompts), int(cfg.batch.prompts))  # on all devices
    per_call = -(-at_a_time // devices)
    lora = lora_of(cfg)
    packed = not cfg.model.trust_remote_code and memory.packs(made.config, cfg.model.attn_implementation)
    load = memory.Load(
        config=made.config,
        dtype=getattr(torch, cfg.model.dtype),
        compute_dtype=getattr(torch, cfg.model.compute_dtype),
        attention=cfg.model.attn_implementation,
        checkpointing=cfg.model.gradient_checkpointing,
        reference=bool(cfg.kl.coef > 0 or cfg.kl.schedule.get("final")),
        lora_rank=lora[0],
        lora_targets=lora[1],
        moments=moments(cfg),
        masters=masters(cfg),
        packed=packed,
        in_32_bits=device.kind == "cpu",
        shards=devices if sharded else 1,
        prompt_tokens=shown,
        update=backward_pass(cfg, packed, per_call * group, group, shown, longest),
        decode=decoding(cfg, per_call, group, longest, shown) if kind == "hf" else (),
    )
    parameters = sum(p.numel() for p in made.parameters())
    return Job(
        load=load,
        size=size,
        parameters=parameters,
        trained=adapters(made, lora) if lora[0] else parameters,
        devices=devices,
        nodes=nodes,
        prompts=prompts,
        group=group,
        calls=-(-int(cfg.batch.prompts) // at_a_time),
        per_call=per_call,
        prompt_tokens=shown,
        tokens=min(int(cfg.get("plan_tokens") or longest), longest),
        passes=int(cfg.batch.epochs),
        optimizer_steps=int(cfg.batch.epochs * cfg.batch.minibatches),
        micro_tokens=int(cfg.batch.micro_tokens),
        sampler="none" if cfg.algo.train_sampler else kind,
        decoded=int(sampler.max_sequences),
        share=float(sampler.get("memory_share") or 0),
        sleeps=bool(sampler.get("sleep")) and device.kind == "gpu",
        servers=len(sampler.get("servers") or ()),
        cpu_cache=float(sampler.get("cpu_cache_gb") or 0) * GIB,
        response=longest,
        ahead=int(cfg.rollout.staleness),
    )


def prompt_tokens(problems: Any, cfg: DictConfig) -> int:
    """The longest prompt: data.max_prompt_tokens, what generated chains can come to, or 256."""
    if cfg.data.max_prompt_tokens:
        return int(cfg.data.max_prompt_tokens)
    if problems and str(problems.get("_target_")).endswith(".arithmetic"):
        return int(max(problems.get("operands", [3, 6])) * (2 if problems.get("form") == "symbols" else 8))
    return 256


def backward_pass(
    cfg: DictConfig, packed: bool, completions: int, group: int, prompt: int, longest: int
) -> tuple[int, int, int, int]:
    """The most that a backward pass can be: completions, tokens of the longest and of all, prompts (see `batch.cut_packed`)."""
    budget, width = int(cfg.batch.micro_tokens), prompt + longest
    if not packed:
        rows = min(completions, max(1, budget // width))
        return rows, longest, rows * longest, -(-rows // group)
    rows = min(completions, max(1, 2 * budget // width))
    prompts = -(-rows // group)
    return rows, longest, min(rows * longest, max(longest, budget - prompts * prompt)), prompts


def decoding(cfg: DictConfig, per_call: int, group: int, longest: int, shown: int) -> tuple[tuple[int, int, int, int], ...]:
    """What is decoded at a time in training, and in the evaluation of each test set (see `memory.Load`)."""
    most = int(cfg.rollout.sampler.max_sequences)
    found = [] if cfg.algo.train_sampler else [(min(per_call, most), min(per_call * group, most), longest, shown)]
    for test in cfg.data.tests.values():
        if test is not None:
            size = min(int(test.get("size") or 10**9), int(cfg.eval.limit or 10**9), int(cfg.eval.prompts), most)
            found.append((size, size, longest, prompt_tokens(test, cfg)))
    return tuple(dict.fromkeys(found))


def lora_of(cfg: DictConfig) -> tuple[int, str | tuple[str, ...]]:
    """Rank of the adapters, 0 without, and which layers have them (`memory.named`)."""
    if cfg.model.get("adapter") != "lora":
        return 0, ()
    settings = cfg.model.get("lora") or {}
    targets = settings.get("target_modules") or "all-linear"
    return int(settings.get("r", 16)), targets if isinstance(targets, str) else tuple(targets)


def adapters(made: PreTrainedModel, lora: tuple[int, str | tuple[str, ...]]) -> int:
    """Parameters of the adapters."""
    with torch.device("meta"):
        return sum(p.numel() for p in memory.add_adapters(made, *lora))


# --- time ----------------------------------------------------------------------------------------------------------------


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


# --- what is said --------------------------------------------------------------------------------------------------------

ORDER: tuple[str, ...] = (
    "weights",
    "gradients",
    "optimizer",
    "reference",
    "activations",
    "logits",
    "KV cache",
    "gathered",
    "vLLM",
    "fragments",
)
ORDER += ("CUDA", "libraries", "process")
WORDS = {
    "gradients": "gradients, as far as made",
    "optimizer": "optimizer: two moments",
    "reference": "reference model",
    "logits": "logits",
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
    how = f" ({cfg.trainer.get('strategy') or 'one device'})" if job.devices > 1 else ""
    adapters = f", of which LoRA trains {job.trained:,} more" if job.load.lora_rank else ""
    lines = [
        f"plan: {cfg.algo.name} on {cfg.data.name}, {cfg.model.name} ({job.parameters:,} parameters{adapters}), "
        f"{many}{device.name}{how}",
        f"{'memory of a device at the peak of a phase, GiB':48}" + "".join(f"{p:>12}" for p in phases),
    ]
    for part in ORDER:
        sizes = [plan.memory[p].get(part, 0.0) / GIB for p in phases]
        if any(sizes):
            lines.append(f"  {WORDS.get(part, part):46}" + "".join(f"{s:12.3f}" if s else f"{'-':>12}" for s in sizes))
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
    return "\n".join([*lines, *assumptions(cfg, plan)])


def assumptions(cfg: DictConfig, plan: Plan) -> list[str]:
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
    named = ", ".join(f"{WORDS.get(name, name)} {size / GIB:,.1f}" for name, size in largest)
    return (
        f"does not fit: {phase} needs {sum(parts.values()) / GIB:,.1f} GiB a device ({named}), and of the "
        f"{device.memory / GIB:,.1f} GiB of {device.name} {plan.room / GIB:,.1f} can be used"
    )


def _duration(total_s: float) -> str:
    return f"{total_s / 3600:,.1f} h" if total_s >= 3600 else f"{total_s / 60:,.1f} min"


# --- what to change ------------------------------------------------------------------------------------------------------


Changes = Mapping[str, Any]


def remedies(cfg: DictConfig, plan: Plan, most: int = 3) -> Iterator[list[str]]:
    """Overrides with which it would fit, the smallest changes first, at most so many."""
    found = 0
    for route in routes(cfg, plan):
        if (changes := fitted(cfg, plan.whole, route)) is not None:
            yield overrides(changes)
            found += 1
            if found == most or not route:
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


def fitted(cfg: DictConfig, device: Device, route: Changes) -> Changes | None:
    """`route`, with what else it takes to fit: checkpointing, smaller backward passes, fewer completions decoded at a time."""
    changes = dict(route)
    job = job_of(changed(cfg, changes), device)
    if hopeless(job, part_of(device, job.devices)):
        return None
    for _ in range(12):
        now = changed(cfg, changes)
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
            rows = min(max(batch[1] for batch in job.load.decode), int(now.rollout.sampler.max_sequences))
            changes["rollout.sampler.max_sequences"] = max(1, 2 ** int(math.log2(max(1.0, rows * min(room / need, 0.5)))))
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


def changed(cfg: DictConfig, changes: Changes) -> DictConfig:
    """A copy with other values."""
    copy = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    for key, value in changes.items():
        if key == "rollout":
            copy.rollout.sampler = cli.composed([f"rollout={value}"]).rollout.sampler
        else:
            OmegaConf.update(copy, key, value, force_add=True)
    assert isinstance(copy, DictConfig)
    return copy


def overrides(changes: Changes) -> list[str]:
    """As they are written on the command line."""
    words = {"trainer.strategy": "trainer"}  # conf/trainer has a file for it
    return [
        f"{words.get(key, key)}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    ]
