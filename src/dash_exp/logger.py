"""Weights & Biases: online where the machine is logged in, offline where it is not, and never a question."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    run_dir: Path, name: str, group: str | None, settings: dict[str, Any], project: str, entity: str | None = None
) -> WandbLogger:
    """A W&B run in `run_dir`/wandb. WANDB_MODE decides where it is set; otherwise a login means online.

    Arms of a sweep share `group` and are told apart by `name`.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    experiment = wandb.init(
        project=project,
        entity=entity,
        name=name,
        group=group,
        dir=run_dir,
        config=settings,
        mode=cast(Any, mode),
        settings=wandb.Settings(silent=True),
    )
    return WandbLogger(experiment=experiment)


def logged_in() -> bool:
    """Whether an API key stands in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
