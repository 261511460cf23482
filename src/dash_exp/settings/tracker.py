"""The tracker (W&B): what it would refuse itself, but only when the model is loaded."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.addresses import host_and_port
from dash_exp.core.errors import UserError
from dash_exp.settings.checks import part, texts

SECTIONS = "logger"
MODES = ("online", "offline", "shared", "disabled")
EARLIER_MODES = ("run", "dryrun")  # W&B's own names for the first two, which it still takes
NOT_IN_PROJECT = "/\\#?%:"
LONGEST_PROJECT = 128


def values(cfg: DictConfig) -> None:
    part(cfg, "logger.wandb", "_target_")
    texts(cfg, "logger.wandb.project")
    if cfg.logger.get("wandb") is None:
        return
    project = OmegaConf.select(cfg, "logger.wandb.project", default="")
    if len(project) > LONGEST_PROJECT or set(project) & set(NOT_IN_PROJECT):
        raise UserError(
            f"logger.wandb.project={project}",
            "is refused by W&B",
            f"Write at most {LONGEST_PROJECT} characters, none of them one of {' '.join(NOT_IN_PROJECT)}",
        )
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in MODES + EARLIER_MODES:
        raise UserError(f"WANDB_MODE={mode}", "is not known to W&B", f"Use one of {', '.join(MODES)}, or unset it")
    if address := os.environ.get("WANDB_BASE_URL"):
        try:
            host_and_port(address, "http", "https")
        except ValueError as error:
            raise UserError(
                f"WANDB_BASE_URL={address}", f"is not the address of a server: {error}", "Write http://HOST:PORT, or unset it"
            ) from error
