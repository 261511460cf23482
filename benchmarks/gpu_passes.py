"""How fast a policy of random weights samples and trains, and how much memory that takes against the plan. Used by gpu.py.

Every completion is made up, with a length between a quarter of the longest and the longest, so that padding costs what it costs
in a run. The update is forward and backward pass over all of them and the optimizer step, in mixed precision. Operations are
those that the work needs (`planning.costs`): without padding, and without what gradient checkpointing computes again.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peak_memory import PeakMemory
from plan import UNSEEN
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.models import loading, packing
from dash_exp.models.batch import micro_batches
from dash_exp.models.passes import Passes
from dash_exp.planning.architecture import SHAPES
from dash_exp.planning.costs import Group, forward_flops, size_of, update_flops
from dash_exp.planning.machine import KNOWN, SHARE, matrix_rates, this_machine
from dash_exp.planning.plan import FEW_LAYERS, planned
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.refresh import Refresh

RATE_S = 0.3  # measuring time of the matrix rate
REPEATS = 3  # of an update, after one that warms up


class Row(NamedTuple):
    """One number. `what` names it, `unit` says what it is in."""

    part: str
    what: str
    value: float
    unit: str


@dataclass(frozen=True)
class Work:
    """What is sampled and trained on, for a configuration whose model has random weights."""

    cfg: DictConfig
    device: torch.device
    prompts: list[Prompt]
    samples: list[Sample]  # of different lengths
    longest: list[Sample]  # all as long as allowed

    @property
    def group(self) -> int:
        return len(self.samples) // len(self.prompts)

    def groups(self, samples: Sequence[Sample]) -> list[Group]:
        """The lengths, prompt by prompt."""
        n = self.group
        parts = [samples[i : i + n] for i in range(0, len(samples), n)]
        return [Group(len(part[0].prompt_ids), tuple(len(s.completion_ids) for s in part)) for part in parts]


def work_of(cfg: DictConfig, vocabulary: int) -> Work:
    """Made-up prompts of `data.max_prompt_tokens` tokens, and completions of up to `rollout.max_response_tokens`."""
    generator = torch.Generator().manual_seed(cfg.seed)
    n_prompts, group, most = cfg.batch.prompts, cfg.algo.group_size, cfg.rollout.max_response_tokens
    ids = torch.randint(3, vocabulary, (n_prompts, cfg.data.max_prompt_tokens), generator=generator).tolist()
    prompts = [Prompt(Problem(str(i), "", ""), tuple(row)) for i, row in enumerate(ids)]
    lengths = torch.randint(max(1, most // 4), most + 1, (n_prompts * group,), generator=generator).tolist()
    written = torch.randint(3, vocabulary, (n_prompts * group, most), generator=generator).tolist()
    longest = [Sample(prompts[i // group].ids, np.array(row, np.int32), 1.0) for i, row in enumerate(written)]
    samples = [Sample(s.prompt_ids, s.completion_ids[:n], 1.0) for s, n in zip(longest, lengths, strict=True)]
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    return Work(cfg, device, prompts, samples, longest)


def load(cfg: DictConfig) -> PreTrainedModel:
    """The policy with the shape of `model.path` and random weights, on its device."""
    given: Any = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else SHAPES[cfg.model.path]
    policy = loading.load_policy("", cfg.model.dtype, given, cfg.model.gradient_checkpointing, cfg.model.attn_implementation)
    return policy.to("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")  # type: ignore[arg-type]


def passes(part: str, cfg: DictConfig) -> Iterator[Row]:
    """Update and sampling: tokens per second, share of the device's rates, and memory against the plan."""
    row, peak = partial(Row, part), PeakMemory()
    policy = load(cfg)
    work, speed = work_of(cfg, policy.config.vocab_size), speed_of(cfg)
    yield row("large matrix product", speed.measured / 1e12, "TFLOP/s")
    yield row("parameters", sum(p.numel() for p in policy.parameters()) / 1e6, "M")
    optimizer = instantiate(cfg.optimizer)(policy.parameters())
    groups = work.groups(work.samples)
    needed, count = update_flops(size_of(policy), groups), sum(g.prompt + sum(g.completions) for g in groups)
    for name, variant in variants(policy, getattr(torch, cfg.model.compute_dtype)).items():
        try:
            with variant() as packed:
                seconds = median_seconds(partial(update, policy, optimizer, work, work.samples, packed), work.device)
        except UserError as error:  # varlen, where torch or the GPU does not have it
            print(f"update, {name}: {error}", flush=True)
            continue
        yield from speed.rows(row, f"update, {name}", count, needed, seconds)
    with peak("update"):
        update(policy, optimizer, work, work.longest, packing.enabled(policy))
    tokenizer = loading.load_tokenizer(str(loading.ASSETS / "tiny"))
    sampler = HFSampler(policy, tokenizer, cfg.rollout.sampler.max_sequences, getattr(torch, cfg.model.compute_dtype))
    yield from sampling(row, "sampling, Transformers", sampler, policy, work, speed, peak)
    yield from against_plan(row, cfg, peak)


def vllm(part: str, cfg: DictConfig) -> Iterator[Row]:
    """Sampling with vLLM, of the same prompts and lengths."""
    from dash_exp.sampling.vllm import VLLMSampler

    policy = load(cfg)
    work, speed = work_of(cfg, policy.config.vocab_size), speed_of(cfg)
    most = cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens
    tokenizer = loading.load_tokenizer(str(loading.ASSETS / "tiny"))
    settings: dict[str, Any] = {"max_sequences": len(work.samples), "max_model_len": most, "memory_share": 0.4}
    sampler = VLLMSampler(policy, tokenizer, getattr(torch, cfg.model.compute_dtype), **settings)
    try:
        Refresh(policy, sampler).bring_newest()
        yield from sampling(partial(Row, part), "sampling, vLLM", sampler, policy, work, speed)
    finally:
        sampler.close()


def variants(policy: PreTrainedModel, dtype: torch.dtype) -> dict[str, Callable[[], contextlib.AbstractContextManager[bool]]]:
    """The ways to compute the update, by name. Each is entered around it, and says whether micro-batches are packed.

    UserError where one is entered that does not work here in this number type.
    """

    @contextlib.contextmanager
    def as_it_is(packed: bool, flash: bool = True) -> Iterator[bool]:
        torch.backends.cuda.enable_flash_sdp(flash)
        try:
            yield packed
        finally:
            torch.backends.cuda.enable_flash_sdp(True)

    @contextlib.contextmanager
    def with_attention(name: str) -> Iterator[bool]:
        before = policy.config._attn_implementation
        policy.set_attn_implementation(name)
        try:
            packing.check_varlen(policy, policy.device, dtype)
            yield packing.enabled(policy)
        finally:
            policy.set_attn_implementation(before)

    found: dict[str, Callable[[], contextlib.AbstractContextManager[bool]]] = {}
    on_gpu = policy.device.type == "cuda"
    if packing.enabled(policy):
        found["packed"] = partial(as_it_is, True)
        if on_gpu:
            found["packed, without torch's flash attention"] = partial(as_it_is, True, False)
            found["packed, varlen"] = partial(with_attention, packing.VARLEN)
    found["padded"] = partial(as_it_is, False)
    if on_gpu:
        found["padded, without torch's flash attention"] = partial(as_it_is, False, False)
        if is_flash_attn_2_available():
            found["flash_attention_2"] = partial(with_attention, "flash_attention_2")
    return found


def update(policy: PreTrainedModel, optimizer: Any, work: Work, samples: Sequence[Sample], packed: bool) -> None:
    """Forward and backward passes over the samples in micro-batches, and an optimizer step."""
    passing = Passes(work.cfg.batch.micro_tokens, 0, 1.0, getattr(torch, work.cfg.model.compute_dtype))
    for _, batch in micro_batches(samples, passing.micro_tokens, passing.pad_id, packed):
        passing.log_probs(policy, batch.to(work.device)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def sampling(
    row: Callable[..., Row],
    name: str,
    sampler: Sampler,
    policy: PreTrainedModel,
    work: Work,
    speed: Speed,
    peak: PeakMemory | None = None,
) -> Iterator[Row]:
    """Sample all completions at once, after a short call that warms up."""
    sampler.sample(work.prompts, work.group, Sampling(8), (0, 0))
    start = now(work.device)
    with peak("sample") if peak else contextlib.nullcontext():
        completions = sampler.sample(work.prompts, work.group, Sampling(work.cfg.rollout.max_response_tokens), (0, 1))
    seconds = now(work.device) - start
    lengths, n = [len(c.ids) for c in completions], work.group
    groups = [Group(len(p.ids), tuple(lengths[i * n : (i + 1) * n])) for i, p in enumerate(work.prompts)]
    needed = sum(forward_flops(size_of(policy), group) for group in groups)
    yield from speed.rows(row, name, sum(lengths), needed, seconds)
    yield row(f"{name}: a decoded token of each", 1000 * seconds / max(lengths), "ms")


def against_plan(row: Callable[..., Row], cfg: DictConfig, peak: PeakMemory) -> Iterator[Row]:
    """Peak memory of an update on the longest completions, and of sampling, measured and planned."""
    peak.switch("other")
    found = planned(cfg, this_machine(cfg.trainer.accelerator, cfg.model.compute_dtype), FEW_LAYERS)
    sizes = {p: sum(n for part, n in found.memory[p].items() if part not in UNSEEN) for p in ("sample", "update", "step")}
    tensors = {"sample": sizes["sample"], "update": max(sizes["update"], sizes["step"])}
    # resident memory keeps that of earlier phases
    measured = peak.peaks.get("gpu") or {"update": max(peak.peaks["rss"].values()) - peak.imports}
    for phase in [p for p in tensors if p in measured]:
        size, seen = tensors[phase], measured[phase]
        yield row(f"{phase}: peak memory", seen, "MiB")
        yield row(f"{phase}: planned", size / 2**20, "MiB")
        yield row(f"{phase}: planned / measured", size / 2**20 / seen, "")


def median_seconds(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = now(device)
        work()
        times.append(now(device) - start)
    return statistics.median(times[1:])


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Speed:
    """Operations per second of a large square product, measured and by the vendor's data sheet (None where it is not known)."""

    measured: float
    sheet: float | None

    def rows(self, row: Callable[..., Row], name: str, count: int, needed: float, seconds: float) -> Iterator[Row]:
        """Tokens per second, and the share of these rates that the `needed` operations are (model FLOP utilisation)."""
        yield row(f"{name}: tokens", count / seconds, "1/s")
        yield row(f"{name}: model FLOPs", needed / seconds / 1e12, "TFLOP/s")
        yield row(f"{name}: of the matrix rate", 100 * needed / seconds / self.measured, "%")
        if self.sheet:
            yield row(f"{name}: of the data sheet (MFU)", 100 * needed / seconds / self.sheet, "%")


def speed_of(cfg: DictConfig) -> Speed:
    on_gpu, dtype = cfg.trainer.accelerator == "gpu", cfg.model.compute_dtype
    device, side = torch.device("cuda" if on_gpu else "cpu"), 8192 if on_gpu else 1024
    measured, _ = matrix_rates({"square": (side, side, side)}, getattr(torch, dtype), device, RATE_S)["square"]
    name = torch.cuda.get_device_name(device).lower() if on_gpu else ""
    known = next((KNOWN[key] for key in KNOWN if key in name), None)
    return Speed(measured, known.rates[dtype] / SHARE if known else None)
