"""What `plan=true` prints: memory by phase and part, time by phase, and what both are based on."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

from dash_exp.planning.load import Parts
from dash_exp.planning.machine import GIB
from dash_exp.planning.plan import Plan
from dash_exp.planning.timing import REACHED, rate

WORDS = {  # for the parts, in the order of the table
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "reference": "reference model",
    "reward model": "reward model",
    "teacher": "teacher",
    "activations": "activations",
    "logits": "logits",
    "KV cache": "KV cache",
    "cast weights": "weights to sample with",
    "gathered": "gathered layers (FSDP)",
    "exchange": "a gradient that is exchanged",
    "temporaries": "optimizer without fused=true",
    "vLLM": "vLLM: weights, KV cache",
    "fragments": "gaps of the allocator (assumed)",
    "CUDA": "CUDA, workspaces (assumed)",
    "policy": "policy, before and after training",
    "moments": "moments of the optimizer",
    "snapshot": "snapshot, where the run resumes",
    "snapshot beside": "snapshot that is being written",
    "base weights": "weights without the adapter",
    "earlier weights": "weights of earlier steps",
    "sent": "weights for sampling servers",
    "vLLM asleep": "vLLM, asleep",
    "gathered to save": "weights on the way to a file",
    "rollouts": "completions, at their longest",
    "graders": "processes that grade",
    "libraries": "libraries (as measured)",
    "process": "problems, buffers (assumed)",
}


def table(cfg: DictConfig, plan: Plan) -> str:
    """The plan as text: GiB, seconds and assumptions."""
    return "\n".join([title(cfg, plan), *memory_lines(plan), *time_lines(cfg, plan), *assumptions(plan)])


def title(cfg: DictConfig, plan: Plan) -> str:
    """Algorithm, data, model and devices."""
    job = plan.job
    many, how = (f"{job.devices} x ", f" ({cfg.trainer.strategy})") if job.devices > 1 else ("", "")
    adapters = f"; LoRA adds {job.trained:,} and trains only these" if job.load.adapters else ""
    model = f"{cfg.model.name} ({job.parameters:,} parameters{adapters})"
    return f"plan: {cfg.algo.name} on {cfg.data.name}, {model}, {many}{plan.device.name}{how}"


def memory_lines(plan: Plan) -> list[str]:
    """Memory of a device, whether it fits, and beside GPUs CPU memory."""
    lines = block("memory of a device, GiB", plan.memory)
    available = f"of {plan.device.memory / GIB:.1f} GiB"
    lines.append(f"  {available:36}{plan.peak / plan.device.memory:10.0%}  {'fits' if plan.fits else 'DOES NOT FIT'}")
    if not plan.cpu:
        return lines
    ranks = plan.job.devices // plan.job.nodes
    of = f"of {plan.device.cpu_memory / GIB:.1f} GiB" if plan.device.cpu_memory else "of the machine, not known here"
    return [*lines, *block(f"CPU memory of {ranks} rank(s), GiB", plan.cpu), f"  {of}"]


def block(heading: str, memory: Mapping[str, Parts]) -> list[str]:
    """Bytes by part (rows) at the peak of each phase (columns), in GiB."""
    lines = [f"{heading:38}" + "".join(f"{phase:>10}" for phase in memory)]
    for part, words in WORDS.items():
        sizes = [parts.get(part, 0.0) / GIB for parts in memory.values()]
        if any(sizes):
            lines.append(f"  {words:36}" + "".join(f"{s:10.3f}" if s else f"{'-':>10}" for s in sizes))
    totals = [sum(parts.values()) / GIB for parts in memory.values()]
    return [*lines, f"  {'total':36}" + "".join(f"{total:10.3f}" for total in totals)]


def time_lines(cfg: DictConfig, plan: Plan) -> list[str]:
    """Seconds of an outer step by phase, and of all `steps`."""
    total = sum(plan.seconds.values())
    phases = " + ".join(f"{name} {s:,.3g}" for name, s in plan.seconds.items())
    return [f"time of an outer step, seconds: {total:,.3g} = {phases}; {cfg.steps} steps {_duration(total * cfg.steps)}"]


def assumptions(plan: Plan) -> list[str]:
    """What the plan is based on: rates, lengths, and the sizes of a backward pass and of sampling."""
    job, device, load, lengths = plan.job, plan.device, plan.job.load, plan.job.lengths
    dtype = str(load.compute_dtype).removeprefix("torch.")
    reached = [f"{REACHED[device.kind, phase]:.0%}" for phase in ("update", "sample")]
    source = "measured: benchmarks/limit.py, embedded default"
    if device.kind == "gpu":
        source = "the first measured at 0.5B on an H200, the second a guess"
    update = load.update
    assert update is not None
    tokens = update.tokens + update.prompts * update.prompt_tokens
    lines = [
        "assumed:",
        f"  device     {rate(job, device) / 1e12:,.3g} TFLOP/s in {dtype}, {device.bandwidth / 1e9:,.0f} GB/s",
        f"             ({device.source})",
        f"  reached    {reached[0]} of it in the update, {reached[1]} in sampling ({source})",
        f"  lengths    prompts of {lengths.prompt} tokens; completions of {lengths.longest} for memory, "
        f"{lengths.completion} for time",
        "             (plan_tokens=... sets their mean); the filter drops none, nothing is refilled or screened",
        f"  update     {update.completions} completions of {update.prompts} prompt(s) in a backward pass, {tokens:,} tokens, "
        + ("no padding" if load.packed else "padded"),
    ]
    if load.decode:
        largest = max(load.decode, key=lambda batch: batch.completions * (batch.tokens + batch.prompt_tokens))
        lines.append(
            f"  sampling   up to {largest.completions} completions decoded at the same time, "
            f"prompts of {largest.prompt_tokens} tokens; evaluation included"
        )
    if plan.cache_tokens is not None:
        at_once = int(plan.cache_tokens / (lengths.prompt + lengths.completion))
        lines.append(
            f"  sampling   KV cache for {plan.cache_tokens:,.0f} tokens, {at_once} completions at the same time, "
            f"of at most {job.sampler.max_sequences}"
        )
    if job.devices > 1:
        lines.append(
            f"  between    {device.links[0] / 1e9:.0f} GB/s inside a machine, {device.links[1] / 1e9:.0f} GB/s between "
            "machines, each direction, fully used and not overlapped with computation"
        )
    return lines


def _duration(total_s: float) -> str:
    return f"{total_s / 3600:,.1f} h" if total_s >= 3600 else f"{total_s / 60:,.1f} min"
