"""The model, and an adapter that is trained in place of its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.algorithm import kl_in_reward
from dash_exp.settings.checks import flags, known, number, numbers, part, shown, texts

SECTIONS = "model"
DTYPES = ("float32", "bfloat16", "float16")
LORA = ("r", "alpha", "dropout", "target_modules", "lr")


def values(cfg: DictConfig) -> None:
    part(cfg, "model.architecture", "model_type")
    texts(cfg, "model.path model.tokenizer model.attn_implementation")
    flags(cfg, "model.gradient_checkpointing model.master_weights model.trust_remote_code")
    numbers(cfg, "model.lora.r model.lora.alpha", whole=True, least=1)
    number(cfg, "model.lora.dropout", least=0, below=1, why="it is a share, and 1 would drop everything")
    known(cfg, "model.dtype", DTYPES)
    if "instruct" in cfg.model:  # a run of an earlier version does not have it
        known(cfg, "model.instruct", ["auto", True, False])
    known(cfg, "model.compute_dtype", DTYPES)


def relations(cfg: DictConfig) -> None:
    """Those of an adapter: its own settings, and those of others that it cannot be used with."""
    if cfg.model.get("adapter") is None:  # a run of an earlier version does not have this setting
        return
    known(cfg, "model.adapter", ["lora"])
    lora = cfg.model.lora
    if not isinstance(lora, DictConfig) or set(lora) != set(LORA):
        raise UserError(
            f"model.lora={shown(lora)}", "must be the settings of an adapter", f"Give {', '.join(LORA)}, and nothing else"
        )
    names = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) and n for n in names):
        raise UserError(
            f"model.lora.target_modules={shown(lora.target_modules)}",
            "names no layers",
            "Write all-linear, or names as in [q_proj,v_proj]",
        )
    if lora.r > 512 and ".vllm" in cfg.rollout.sampler._target_ and not cfg.rollout.sampler.merge:
        raise UserError(
            f"model.lora.r={lora.r}", "is above vLLM's limit of 512", "Lower it, or write rollout.sampler.merge=true"
        )
    if (Path(cfg.model.path).expanduser() / "adapter_config.json").is_file() and not cfg.model.architecture:
        raise UserError(
            f"model.path={cfg.model.path}",
            "is an adapter, and a second adapter on top of it would name it as its base",
            "Train without model.adapter, or merge it into its base with PEFT's merge_and_unload first",
        )
    if cfg.rollout.staleness > 0 and kl_in_reward(cfg):
        raise UserError(
            f"rollout.staleness={cfg.rollout.staleness}",
            "runs the reference while the policy trains, and with an adapter the two are one model",
            "Use kl.place=loss, or rollout.staleness=0",
        )
    if importlib.util.find_spec("peft") is None:
        raise UserError("model.adapter=lora", "needs PEFT, which is not installed", "Run pip install -e '.[lora]'")
