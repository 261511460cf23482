"""Refuses devices, ranks and adapters that the training loop or each other have no place for. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import known, shown

LORA = ("r", "alpha", "dropout", "target_modules", "lr")
# What may be added to a trainer; its other settings are taken by the loop here, or would break it.
TRAINER = ("deterministic", "benchmark", "detect_anomaly", "profiler")


def check_trainer(cfg: DictConfig) -> None:
    """Raise UserError for devices that the run cannot have, and for settings of Lightning's that are not for its loop."""
    known(cfg, "trainer.accelerator", ["cpu", "gpu"])
    known(cfg, "trainer.strategy", ["auto", "ddp", "fsdp"])
    _ranks(cfg)
    fixed = {
        "max_epochs": cfg.steps,
        "check_val_every_n_epoch": cfg.eval.every,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    for key, value in fixed.items():
        if cfg.trainer.get(key) != value:
            raise UserError(
                f"trainer.{key}={shown(cfg.trainer.get(key))}",
                f"must be {value} here",
                "Leave it out; see steps, eval.every and resume_every",
            )
    for key in cfg.trainer:
        if key not in ("_target_", "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", *fixed, *TRAINER):
            instead = {"gradient_clip_val": "clip_norm", "accumulate_grad_batches": "batch.micro_tokens"}
            instead |= {"precision": "model.compute_dtype", "max_time": "budget.seconds"}
            raise UserError(
                f"trainer.{key}",
                "is not for this training loop, which steps, clips and evaluates by itself",
                f"Use {instead[str(key)]}" if key in instead else f"Leave it out; what can be added is {', '.join(TRAINER)}",
            )


def _ranks(cfg: DictConfig) -> None:
    if cfg.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}",
            "is not supported: a run starts its own ranks, on the machine that it is started on",
            "Write 1; sampling can be on other machines, with rollout=vllm_server",
        )
    if cfg.trainer.devices == 1:
        return
    where = f"trainer.devices={cfg.trainer.devices}"
    if cfg.trainer.strategy == "auto":
        raise UserError(where, "needs to know how the devices share the work", "Add trainer=ddp or fsdp")
    if str(cfg.rollout.sampler.get("_target_")).endswith(".VLLMSampler"):
        raise UserError(
            where,
            "and rollout=vllm has an engine inside the one process of the run",
            "Use rollout=vllm_server, whose engines have devices of their own, or rollout=hf",
        )
    if cfg.trainer.strategy != "fsdp":
        return
    if cfg.model.dtype != "float32" and cfg.model.master_weights and not cfg.model.adapter:
        raise UserError(
            "trainer.strategy=fsdp",
            f"keeps no 32-bit copies of weights that are trained in {cfg.model.dtype}",
            "Use model.dtype=float32, which model.compute_dtype rounds for each product, or model.adapter=lora",
        )
    if str(cfg.optimizer.get("_target_")).startswith("bitsandbytes."):
        raise UserError(
            f"optimizer._target_={cfg.optimizer._target_}",
            "does not take weights that are shared out (trainer.strategy=fsdp)",
            "Use torch.optim.AdamW, or trainer=ddp",
        )
    if cfg.model.adapter and cfg.kl.place == "reward":
        raise UserError(
            "trainer.strategy=fsdp",
            "with an adapter has the reference inside the policy, whose parts the ranks gather together",
            "Use kl.place=loss",
        )


def check_adapter(cfg: DictConfig) -> None:
    """Raise UserError for an adapter that cannot be made, or that other settings have no place for."""
    if cfg.model.get("adapter") is None:  # a run of an earlier version does not have it
        return
    known(cfg, "model.adapter", ["lora"])
    lora = cfg.model.lora
    if not isinstance(lora, DictConfig) or set(lora) != set(LORA):
        raise UserError(
            f"model.lora={shown(lora)}", "are no settings of an adapter", f"Give {', '.join(LORA)}, and nothing else"
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
            f"model.lora.r={lora.r}", "is more than vLLM takes, 512", "Lower it, or write rollout.sampler.merge=true"
        )
    if lora.dropout >= 1:
        raise UserError(f"model.lora.dropout={lora.dropout}", "would drop everything", "Use a share below 1")
    if (Path(cfg.model.path).expanduser() / "adapter_config.json").is_file() and not cfg.model.architecture:
        raise UserError(
            f"model.path={cfg.model.path}",
            "is an adapter, and another one on top of it would name it as its base",
            "Train without model.adapter, or merge it into its base with PEFT's merge_and_unload first",
        )
    if cfg.rollout.staleness > 0 and cfg.kl.place == "reward":
        raise UserError(
            f"rollout.staleness={cfg.rollout.staleness}",
            "asks the reference while the policy trains, and with an adapter the two are one model",
            "Use kl.place=loss, or rollout.staleness=0",
        )
    if importlib.util.find_spec("peft") is None:
        raise UserError("model.adapter=lora", "needs PEFT, which is not installed", "Run pip install -e '.[lora]'")
