"""What the settings of a run come to: the sizes that its memory and its time follow from. No weights or data are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from dash_exp.models import loading
from dash_exp.planning import memory
from dash_exp.planning.costs import Size, size_of
from dash_exp.planning.machine import Device

GIB = 2**30

# The shapes of models that conf/model/ names, as their config.json has them: a plan needs no network.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    name: family | dict(zip(_SIZES, sizes, strict=True))
    for name, family, sizes in (
        ("Qwen/Qwen2.5-0.5B", _QWEN, (896, 4864, 24, 14, 32768)),
        ("Qwen/Qwen2.5-1.5B", _QWEN, (1536, 8960, 28, 12, 131072)),
        ("Qwen/Qwen2.5-3B", _QWEN, (2048, 11008, 36, 16, 32768)),
        ("meta-llama/Meta-Llama-3-8B", _LLAMA, (4096, 14336, 32, 32, 8192)),
        ("meta-llama/Meta-Llama-3-70B", _LLAMA, (8192, 28672, 80, 64, 8192)),
    )
}


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


def architecture(cfg: DictConfig) -> PreTrainedModel:
    """The model on the meta device: from model.architecture, a table of known ones, a folder, or the hub."""
    given = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else SHAPES.get(cfg.model.path)
    return _made(cfg.model.path, json.dumps(given), cfg.model.trust_remote_code)


@lru_cache
def _made(path: str, given: str, trust_remote_code: bool) -> PreTrainedModel:
    return loading.load_architecture(path, json.loads(given), trust_remote_code)


def job_of(cfg: DictConfig, device: Device) -> Job:
    """What the settings come to on one device."""
    made = architecture(cfg)
    devices = cfg.trainer.devices * cfg.trainer.num_nodes
    sampler = cfg.rollout.sampler
    kind = {"HFSampler": "hf", "VLLMSampler": "vllm"}.get(sampler._target_.rpartition(".")[2], "vllm_server")
    group, longest, shown = cfg.algo.group_size, cfg.rollout.max_response_tokens, prompt_tokens(cfg.data.train, cfg)
    at_a_time = min(cfg.batch.sample_prompts or cfg.batch.prompts, cfg.batch.prompts)  # on all devices
    per_call = -(-at_a_time // devices)
    rank, targets = lora_of(cfg)
    in_32_bits = rank > 0 or cfg.model.dtype == "float32"  # what is trained: adapters are, by themselves
    masters = not in_32_bits and cfg.model.master_weights
    packed = not cfg.model.trust_remote_code and memory.packs(made.config, cfg.model.attn_implementation)
    load = memory.Load(
        config=made.config,
        dtype=getattr(torch, cfg.model.dtype),
        compute_dtype=getattr(torch, cfg.model.compute_dtype),
        attention=cfg.model.attn_implementation,
        checkpointing=cfg.model.gradient_checkpointing,
        reference=bool(cfg.kl.coef > 0 or cfg.kl.schedule.get("final")),
        lora_rank=rank,
        lora_targets=targets,
        moments=2 if "8bit" in cfg.optimizer._target_ else 8 if in_32_bits or masters else 4,
        masters=masters,
        packed=packed,
        in_32_bits=device.kind == "cpu",
        shards=devices if cfg.trainer.strategy == "fsdp" else 1,
        prompt_tokens=shown,
        update=backward_pass(cfg.batch.micro_tokens, packed, per_call * group, group, shown, longest),
        decode=decoding(cfg, per_call, group, longest, shown) if kind == "hf" else (),
    )
    parameters = sum(p.numel() for p in made.parameters())
    adapters = sum(rank * (layer.in_features + layer.out_features) for layer in memory.adapted(made, targets)) if rank else 0
    return Job(
        load=load,
        size=size_of(made),
        parameters=parameters,
        trained=adapters or parameters,
        devices=devices,
        nodes=cfg.trainer.num_nodes,
        prompts=-(-cfg.batch.prompts // devices),
        group=group,
        calls=-(-cfg.batch.prompts // at_a_time),
        per_call=per_call,
        prompt_tokens=shown,
        tokens=min(cfg.plan_tokens or longest, longest),
        passes=cfg.batch.epochs,
        optimizer_steps=cfg.batch.epochs * cfg.batch.minibatches,
        micro_tokens=cfg.batch.micro_tokens,
        sampler="none" if cfg.algo.train_sampler else kind,
        decoded=sampler.max_sequences,
        share=sampler.get("memory_share", 0.0),
        sleeps=sampler.get("sleep", False) and device.kind == "gpu",
        servers=len(sampler.get("servers", ())),
        cpu_cache=sampler.get("cpu_cache_gb", 0.0) * GIB,
        response=longest,
        ahead=cfg.rollout.staleness,
    )


def prompt_tokens(problems: Any, cfg: DictConfig) -> int:
    """The longest prompt: data.max_prompt_tokens, what generated chains can come to, or 256."""
    if cfg.data.max_prompt_tokens:
        return cfg.data.max_prompt_tokens
    if problems and problems._target_.endswith(".arithmetic.generate"):
        return max(problems.get("operands", [3, 6])) * (2 if problems.get("form") == "symbols" else 8)
    return 256


def backward_pass(
    budget: int, packed: bool, completions: int, group: int, prompt: int, longest: int
) -> tuple[int, int, int, int]:
    """The most that a backward pass can be: completions, tokens of the longest and of all, prompts (see `batch.cut_packed`)."""
    width = prompt + longest
    if not packed:
        rows = min(completions, max(1, budget // width))
        return rows, longest, rows * longest, -(-rows // group)
    rows = min(completions, max(1, 2 * budget // width))
    prompts = -(-rows // group)
    return rows, longest, min(rows * longest, max(longest, budget - prompts * prompt)), prompts


def decoding(cfg: DictConfig, per_call: int, group: int, longest: int, shown: int) -> tuple[tuple[int, int, int, int], ...]:
    """What is decoded at a time in training, and in the evaluation of each test set (see `memory.Load`)."""
    most = cfg.rollout.sampler.max_sequences
    found = [] if cfg.algo.train_sampler else [(min(per_call, most), min(per_call * group, most), longest, shown)]
    for test in cfg.data.tests.values():
        if test is not None:
            size = min(test.get("size") or cfg.eval.prompts, cfg.eval.limit or cfg.eval.prompts, cfg.eval.prompts, most)
            found.append((size, size, longest, prompt_tokens(test, cfg)))
    return tuple(dict.fromkeys(found))


def lora_of(cfg: DictConfig) -> tuple[int, str | tuple[str, ...]]:
    """Rank of the adapters, 0 without, and which layers have them (`memory.named`)."""
    if cfg.model.adapter is None:
        return 0, ()
    targets = cfg.model.lora.target_modules
    return cfg.model.lora.r, targets if isinstance(targets, str) else tuple(targets)
