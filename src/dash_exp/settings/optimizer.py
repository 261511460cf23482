"""The optimizer and the learning rate's schedule."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import number, numbers

SECTIONS = "optimizer schedule"


def values(cfg: DictConfig) -> None:
    numbers(cfg, "clip_norm optimizer.lr", above=0, why="at 0 no weight would change")
    numbers(cfg, "optimizer.weight_decay optimizer.eps", least=0)
    number(cfg, "schedule.num_training_steps", whole=True, least=1)
    number(cfg, "schedule.num_warmup_steps", whole=True, least=0)
    betas = cfg.optimizer.get("betas", [0.9, 0.99])
    two = isinstance(betas, Sequence) and not isinstance(betas, str) and len(betas) == 2
    if not two or not all(isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.betas={betas}", "must be two numbers from 0 to below 1", "Write two, as in [0.9,0.99]")


def relations(cfg: DictConfig) -> None:
    package = str(cfg.optimizer.get("_target_")).partition(".")[0]
    if package == "bitsandbytes" and importlib.util.find_spec(package) is None:
        raise UserError(
            f"optimizer._target_={cfg.optimizer._target_}", f"{package} is not installed", "Run pip install -e '.[8bit]'"
        )
    if cfg.schedule.get("num_warmup_steps", 0) >= cfg.schedule.get("num_training_steps", math.inf):
        raise UserError(
            f"schedule.num_warmup_steps={cfg.schedule.num_warmup_steps}",
            f"is not below the {cfg.schedule.num_training_steps} steps of the schedule, so the learning rate is never reached",
            "Lower it, or raise steps",
        )
