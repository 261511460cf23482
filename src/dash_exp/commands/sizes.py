"""What a run prints at its start: the sizes that follow from its settings, its choices in words, its device."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig

from dash_exp.commands.build import Parts, importance_cap
from dash_exp.models import adapter, packing
from dash_exp.training.budget import LIMITS

GAINS = 100_000_000  # parameters; steps of SmolLM2-135M were quicker in 16 bits, the embedded default gained nothing


def sizes(cfg: DictConfig, parts: Parts, run_dir: Path) -> str:
    """The derived sizes, so that nobody has to guess what "batch size" means here."""
    batch, data_ = cfg.batch, parts.data
    size = derived_sizes(cfg, parts)
    tests = ", ".join(f"{len(p):,} {name}" for name, p in data_.test_prompts.items())
    left_out = f" ({parts.left_out:,} that are in a test set left out)" if parts.left_out else ""
    return "\n".join(
        [
            f"{cfg.algo.name} on {cfg.data.name}, seed {cfg.seed} -> {run_dir}",
            f"  policy                    {size['parameters']:,} parameters{adapter_words(parts)}, {cfg.model.compute_dtype}, "
            f"{cfg.trainer.accelerator}{ranks_words(cfg)}",
            f"  problems                  {size['train_problems']:,} to train on{left_out}; tests: {tests}",
            f"  outer steps               {cfg.steps}{budget_words(cfg)}",
            f"  completions per step      {size['completions_per_step']} = {batch.prompts} prompts x {data_.plan.group_size}",
            f"  completions per sampling  {size['completions_per_call']} ({data_.plan.calls} sampling call(s) per step)",
            f"  sampler                   {sampler_words(cfg)}",
            f"  optimizer steps per step  {size['optimizer_steps_per_step']} = {batch.epochs} pass(es) x {batch.minibatches}",
            f"  filter                    {described(cfg.filter)}; truncated completions: {cfg.rollout.truncated}",
            f"  denominator of the loss   {cfg.algo.denominator._target_.rpartition('.')[2]}",
            f"  tokens per backward pass  at most {batch.micro_tokens:,}, "
            + ("no padding, a shared prompt once" if packing.enabled(parts.module.policy) else "padding counted"),
            f"  KL                        {kl_words(cfg)}",
        ]
    )


def quick_words(cfg: DictConfig, parameters: int) -> str | None:
    """A hint where the CPU would multiply matrices quicker in 16 bits. A small model gains nothing from it."""
    if cfg.trainer.accelerator != "cpu" or parameters < GAINS or {cfg.model.dtype, cfg.model.compute_dtype} != {"float32"}:
        return None
    return "model.compute_dtype=bfloat16 is quicker on this CPU" if _has_bfloat16(torch.cpu.get_capabilities()) else None


def _has_bfloat16(has: Mapping[str, object]) -> bool:
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def slow_words(cfg: DictConfig) -> str | None:
    """A warning where matrix products in 16 bits have no instructions of their own: a CPU then takes several times as long."""
    has = torch.cpu.get_capabilities()
    quick = has.get("architecture") != "x86_64" or _has_bfloat16(has)
    if quick or cfg.trainer.accelerator != "cpu" or {cfg.model.dtype, cfg.model.compute_dtype} == {"float32"}:
        return None
    setting = "compute_dtype" if cfg.model.compute_dtype != "float32" else "dtype"
    return (
        f"model.{setting}={cfg.model[setting]} is slow on this CPU, which has neither AVX512-BF16 nor AMX. "
        f"Write model.{setting}=float32."
    )


def derived_sizes(cfg: DictConfig, parts: Parts) -> dict[str, int]:
    """Sizes that follow from several settings together, or from the data."""
    data_ = parts.data
    return {
        "parameters": sum(p.numel() for p in parts.module.policy.parameters()),
        "train_problems": len(data_.train_prompts),
        "completions_per_step": data_.plan.prompts * data_.plan.group_size,
        "completions_per_call": data_.plan.per_call * data_.plan.group_size,
        "optimizer_steps_per_step": cfg.batch.epochs * cfg.batch.minibatches,
    }


def adapter_words(parts: Parts) -> str:
    """` (188,416 of them in an adapter, the only part that is trained)`."""
    policy = parts.module.policy
    trained = sum(tensor.numel() for tensor in adapter.trained(policy).values())
    return f" ({trained:,} of them in an adapter, the only part that is trained)" if adapter.has_one(policy) else ""


def ranks_words(cfg: DictConfig) -> str:
    """` x 2`, or ` x 8 x 2 machines`."""
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    return (f" x {devices}" if devices * nodes > 1 else "") + (f" x {nodes} machines" if nodes > 1 else "")


def budget_words(cfg: DictConfig) -> str:
    """`, or fewer: stops at 120 seconds`."""
    limits = [f"{cfg.budget[name]:,.6g} {name.replace('_', ' ')}" for name in LIMITS if cfg.budget[name] is not None]
    return f", or fewer: stops at {' or '.join(limits)}" if limits else ""


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line for line in lines if line.startswith("model name"))
        name = cpu.partition(":")[2].strip()
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s)"


def described(part: DictConfig) -> str:
    """`AdvantageAbove(threshold=0.1)`."""
    settings = ", ".join(f"{k!s}={v}" for k, v in part.items() if k not in ("_target_", "_partial_"))
    return f"{part._target_.rpartition('.')[2]}({settings})"


def sampler_words(cfg: DictConfig) -> str:
    """`VLLMSampler, weights at most 1 outer step(s) stale, importance ratio capped at 2`."""
    rollout, cap = cfg.rollout, importance_cap(cfg)
    words = rollout.sampler._target_.rpartition(".")[2]
    if rollout.refresh_every is None:
        words += ", weights never refreshed"
    elif oldest := rollout.staleness + rollout.refresh_every - 1:
        words += f", weights at most {oldest} outer step(s) stale"
    return words + ("" if cap is None else f", importance ratio capped at {cap:g}")


def kl_words(cfg: DictConfig) -> str:
    if cfg.kl.coef == 0 and not cfg.kl.schedule.get("final"):
        return "0 (no reference model)"
    schedule = cfg.kl.schedule._target_.rpartition(".")[2].lower()
    schedule += f" to {cfg.kl.schedule.final}" if "final" in cfg.kl.schedule else ""
    return f"{cfg.kl.coef} {schedule}, {cfg.kl.estimator} in the {cfg.kl.place} (with reference model)"
