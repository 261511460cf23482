"""Settings of TRL's GRPOTrainer that correspond to those of train.py. Used by peers.py and memory.py."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def grpo_config(cfg: DictConfig, folder: Path, completions: int, **more: Any) -> Any:
    """A GRPOConfig with `completions` in each micro-batch, without KL, with the same loss and precision as dash_exp."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        seed=cfg.seed,
        max_steps=cfg.steps,
        per_device_train_batch_size=completions,
        num_generations=cfg.algo.group_size,
        max_completion_length=cfg.rollout.max_response_tokens,
        temperature=cfg.rollout.temperature,
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        max_grad_norm=cfg.clip_norm,
        bf16=cfg.model.compute_dtype == "bfloat16",
        gradient_checkpointing=cfg.model.gradient_checkpointing,
        use_cpu=cfg.trainer.accelerator == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
