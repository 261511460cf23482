"""The sizes of a run that its memory and its time follow from, read from its settings. No weights or data are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from dash_exp.planning.adapters import target_layers
from dash_exp.planning.architecture import architecture
from dash_exp.planning.costs import Size, size_of
from dash_exp.planning.empty_models import parameter_count, reads_packed
from dash_exp.planning.load import Adapters, BackwardPass, DecodingBatch, Load
from dash_exp.planning.machine import Device

GIB = 2**30


@dataclass(frozen=True)
class OuterStep:
    """The work of an outer step. Prompts are those of one device."""

    prompts: int
    group: int  # completions of a prompt
    calls: int  # of the sampler
    prompts_per_call: int
    epochs: int
    optimizer_steps: int
    micro_tokens: int


@dataclass(frozen=True)
class Lengths:
    """In tokens. Memory is planned for completions of `longest`, time for the mean `completion`."""

    prompt: int
    completion: int
    longest: int

    @property
    def sequence(self) -> int:
        """The longest prompt and completion together."""
        return self.prompt + self.longest


@dataclass(frozen=True)
class SamplerSizes:
    """What samples, and what it may take."""

    kind: str  # hf, vllm or vllm_server; none where written traces are trained on
    max_sequences: int  # completions decoded at the same time
    memory_share: float  # of a GPU, for an engine
    sleeps: bool  # an engine leaves the GPU during updates
    servers: int
    cpu_cache: float  # bytes, KV cache of an engine on a CPU


@dataclass(frozen=True)
class Job:
    """The sizes of a run; `load`, `step` and `lengths` are those of one device."""

    load: Load
    size: Size
    parameters: int
    trained: int
    devices: int
    nodes: int
    step: OuterStep
    lengths: Lengths
    sampler: SamplerSizes
    staleness: int  # outer steps that are sampled ahead

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's weights as they are kept."""
        return self.parameters * self.load.dtype.itemsize

    @property
    def engine_weight_bytes(self) -> int:
        """Bytes of the weights in an engine, which has them as they are computed with."""
        return self.parameters * self.load.compute_dtype.itemsize


def job_of(cfg: DictConfig, device: Device) -> Job:
    """The sizes of the run that a composed configuration describes, on devices of this kind.

    Raises UserError for a model whose operations are not known and for adapters that match no layer.
    """
    model = architecture(cfg)
    devices = cfg.trainer.devices * cfg.trainer.num_nodes
    step, lengths, sampler = outer_step(cfg, devices), lengths_of(cfg), sampler_sizes(cfg, device)
    adapters = adapters_of(cfg)
    in_32_bits = adapters is not None or cfg.model.dtype == "float32"  # what is trained
    master_weights = not in_32_bits and cfg.model.master_weights
    packed = not cfg.model.trust_remote_code and reads_packed(model.config, cfg.model.attn_implementation)
    load = Load(
        config=model.config,
        dtype=getattr(torch, cfg.model.dtype),
        compute_dtype=getattr(torch, cfg.model.compute_dtype),
        attention=cfg.model.attn_implementation,
        gradient_checkpointing=cfg.model.gradient_checkpointing,
        reference=bool(cfg.kl.coef > 0 or cfg.kl.schedule.get("final")),
        adapters=adapters,
        moment_bytes=2 if "8bit" in cfg.optimizer._target_ else 8 if in_32_bits or master_weights else 4,
        master_weights=master_weights,
        packed=packed,
        attention_in_32_bits=device.kind == "cpu",
        shards=devices if cfg.trainer.strategy == "fsdp" else 1,
        update=largest_pass(step, lengths, packed),
        decode=decoding_batches(cfg, step, lengths) if kind_of_sampler(cfg) == "hf" else (),
    )
    parameters = trained = parameter_count(model)
    if adapters:
        layers = target_layers(model, adapters.targets)
        trained = sum(adapters.rank * sum(layer.weight.shape) for layer in layers)
    return Job(
        load=load,
        size=size_of(model),
        parameters=parameters,
        trained=trained,
        devices=devices,
        nodes=cfg.trainer.num_nodes,
        step=step,
        lengths=lengths,
        sampler=sampler,
        staleness=cfg.rollout.staleness,
    )


def outer_step(cfg: DictConfig, devices: int) -> OuterStep:
    """The share of one of `devices` in an outer step."""
    at_a_time = min(cfg.batch.sample_prompts or cfg.batch.prompts, cfg.batch.prompts)  # on all devices
    return OuterStep(
        prompts=-(-cfg.batch.prompts // devices),
        group=cfg.algo.group_size,
        calls=-(-cfg.batch.prompts // at_a_time),
        prompts_per_call=-(-at_a_time // devices),
        epochs=cfg.batch.epochs,
        optimizer_steps=cfg.batch.epochs * cfg.batch.minibatches,
        micro_tokens=cfg.batch.micro_tokens,
    )


def lengths_of(cfg: DictConfig) -> Lengths:
    """Lengths in training; `plan_tokens` is the mean of completions, where it is given."""
    longest = cfg.rollout.max_response_tokens
    return Lengths(
        prompt=prompt_tokens(cfg.data.train, cfg), completion=min(cfg.plan_tokens or longest, longest), longest=longest
    )


def prompt_tokens(problems: Any, cfg: DictConfig) -> int:
    """Tokens of the longest prompt: `data.max_prompt_tokens`, the most that generated arithmetic can have, or 256."""
    if cfg.data.max_prompt_tokens:
        return cfg.data.max_prompt_tokens
    if problems and problems._target_.endswith(".arithmetic.generate"):
        return max(problems.get("operands", [3, 6])) * (2 if problems.get("form") == "symbols" else 8)
    return 256


def sampler_sizes(cfg: DictConfig, device: Device) -> SamplerSizes:
    """What `rollout.sampler` sets; a setting that the sampler does not have is 0."""
    sampler = cfg.rollout.sampler
    return SamplerSizes(
        kind="none" if cfg.algo.train_sampler else kind_of_sampler(cfg),
        max_sequences=sampler.max_sequences,
        memory_share=sampler.get("memory_share", 0.0),
        sleeps=sampler.get("sleep", False) and device.kind == "gpu",
        servers=len(sampler.get("servers", ())),
        cpu_cache=sampler.get("cpu_cache_gb", 0.0) * GIB,
    )


def kind_of_sampler(cfg: DictConfig) -> str:
    """`hf`, `vllm` or `vllm_server`."""
    name = cfg.rollout.sampler._target_.rpartition(".")[2]
    return {"HFSampler": "hf", "VLLMSampler": "vllm"}.get(name, "vllm_server")


def adapters_of(cfg: DictConfig) -> Adapters | None:
    """The adapters of `model.lora`, None with `model.adapter=null`."""
    if cfg.model.adapter is None:
        return None
    targets = cfg.model.lora.target_modules
    return Adapters(cfg.model.lora.r, targets if isinstance(targets, str) else tuple(targets))


def largest_pass(step: OuterStep, lengths: Lengths, packed: bool) -> BackwardPass:
    """The largest backward pass that `step.micro_tokens` allows (see `batch.cut` and `batch.cut_packed`)."""
    completions, longest = step.prompts_per_call * step.group, lengths.longest
    budget = 2 * step.micro_tokens if packed else step.micro_tokens  # packed, rows of attention may take twice as many
    rows = min(completions, max(1, budget // lengths.sequence))
    prompts = -(-rows // step.group)
    tokens = rows * longest
    if packed:
        tokens = min(tokens, max(longest, step.micro_tokens - prompts * lengths.prompt))
    return BackwardPass(rows, longest, tokens, prompts, lengths.prompt)


def decoding_batches(cfg: DictConfig, step: OuterStep, lengths: Lengths) -> tuple[DecodingBatch, ...]:
    """What Transformers decodes at the same time in training, and in the evaluation of each test set."""
    most = cfg.rollout.sampler.max_sequences
    found = []
    if not cfg.algo.train_sampler:
        prompts = min(step.prompts_per_call, most)
        completions = min(step.prompts_per_call * step.group, most)
        found.append(DecodingBatch(prompts, completions, lengths.longest, lengths.prompt))
    for test in cfg.data.tests.values():
        if test is not None:
            size = min(test.get("size") or cfg.eval.prompts, cfg.eval.limit or cfg.eval.prompts, cfg.eval.prompts, most)
            found.append(DecodingBatch(size, size, lengths.longest, prompt_tokens(test, cfg)))
    return tuple(dict.fromkeys(found))
