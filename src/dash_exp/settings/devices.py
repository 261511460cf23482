"""The trainer: devices, how they share the work, and the settings of Lightning that this training loop uses itself."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.algorithm import kl_in_reward
from dash_exp.settings.checks import flags, known, numbers, shown

SECTIONS = "trainer"
# Settings that may be added to the trainer. Its other settings are used by the training loop, or would break it.
ADDED = ("deterministic", "benchmark", "detect_anomaly", "profiler")
DETERMINISTIC: tuple[bool | str, ...] = (True, False, "warn")
PROFILERS: tuple[bool | str, ...] = ("simple", "advanced", "pytorch")
# Settings of Lightning's own loop, and what does their work here.
INSTEAD = {
    "gradient_clip_val": "clip_norm",
    "accumulate_grad_batches": "batch.micro_tokens",
    "precision": "model.compute_dtype",
    "max_time": "budget.seconds",
}


def values(cfg: DictConfig) -> None:
    numbers(cfg, "trainer.devices trainer.num_nodes", whole=True, least=1)
    known(cfg, "trainer.accelerator", ["cpu", "gpu"])
    known(cfg, "trainer.strategy", ["auto", "ddp", "fsdp"])
    flags(cfg, "trainer.benchmark trainer.detect_anomaly")
    for key, allowed in {"deterministic": DETERMINISTIC, "profiler": PROFILERS}.items():
        if cfg.trainer.get(key) is not None:
            known(cfg, f"trainer.{key}", allowed)


def relations(cfg: DictConfig) -> None:
    _ranks(cfg)
    if ranks(cfg) > 1 and cfg.trainer.strategy == "fsdp":
        _sharded(cfg)
    _settings_of_the_loop(cfg)


def ranks(cfg: DictConfig) -> int:
    """How many ranks the run has, on all machines."""
    return int(cfg.trainer.devices * cfg.trainer.num_nodes)


def _ranks(cfg: DictConfig) -> None:
    if ranks(cfg) == 1:
        return
    where = f"trainer.devices={cfg.trainer.devices}" + (f" trainer.num_nodes={n}" if (n := cfg.trainer.num_nodes) > 1 else "")
    if cfg.trainer.strategy == "auto":
        raise UserError(where, "needs to know how the devices share the work", "Add trainer=ddp or fsdp")
    if str(cfg.rollout.sampler.get("_target_")).endswith(".VLLMSampler"):
        raise UserError(
            where,
            "does not work with rollout=vllm, whose engine is inside the one process of the run",
            "Use rollout=vllm_server, whose engines have devices of their own, or rollout=hf",
        )


def _sharded(cfg: DictConfig) -> None:
    if cfg.model.dtype != "float32" and cfg.model.master_weights and not cfg.model.adapter:
        raise UserError(
            "trainer.strategy=fsdp",
            f"keeps no 32-bit copies of weights that are trained in {cfg.model.dtype}",
            "Use model.dtype=float32, which model.compute_dtype rounds for each product, or model.adapter=lora",
        )
    if str(cfg.optimizer.get("_target_")).startswith("bitsandbytes."):
        raise UserError(
            f"optimizer._target_={cfg.optimizer._target_}",
            "does not support sharded weights (trainer.strategy=fsdp)",
            "Use torch.optim.AdamW, or trainer=ddp",
        )
    if cfg.model.adapter and kl_in_reward(cfg):
        raise UserError(
            "trainer.strategy=fsdp",
            "with an adapter has the reference inside the policy, whose shards all ranks must gather at the same time",
            "Use kl.place=loss",
        )


def _settings_of_the_loop(cfg: DictConfig) -> None:
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
                f"must be {shown(value)} here",
                "Leave it out; see steps, eval.every and resume_every",
            )
    for key in cfg.trainer:
        if key not in ("_target_", "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", *fixed, *ADDED):
            raise UserError(
                f"trainer.{key}",
                "cannot be used: this training loop steps, clips and evaluates by itself",
                f"Use {INSTEAD[str(key)]}" if key in INSTEAD else f"Leave it out; you can add {', '.join(ADDED)}",
            )
