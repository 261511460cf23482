"""The trackers (W&B, TensorBoard, MLflow, Trackio): what they would refuse themselves, but only when the model is loaded."""

from __future__ import annotations

import importlib.util
import os

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.addresses import host_and_port
from dash_exp.core.errors import UserError
from dash_exp.settings.checks import part, texts

SECTIONS = "logger"
PACKAGES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "trackio": "Trackio"}  # extras of this package too
MODES = ("online", "offline", "shared", "disabled")
EARLIER_MODES = ("run", "dryrun")  # W&B's own names for the first two, which it still takes
NOT_IN_PROJECT = "/\\#?%:"
LONGEST_PROJECT = 128


def values(cfg: DictConfig) -> None:
    for name in ("wandb", *PACKAGES):
        part(cfg, f"logger.{name}", "_target_")
    texts(cfg, "logger.wandb.project logger.mlflow.experiment logger.trackio.project")
    if cfg.logger.get("wandb") is not None:
        _wandb(cfg)


def installed(cfg: DictConfig) -> None:
    """Raise UserError for a tracker whose package is not there. A run of earlier needs none of them to be evaluated."""
    for name, title in PACKAGES.items():
        if cfg.logger.get(name) is not None and importlib.util.find_spec(name) is None:
            raise UserError(f"logger={name}", f"needs {title}, which is not installed", f"Run pip install -e '.[{name}]'")


def _wandb(cfg: DictConfig) -> None:
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
