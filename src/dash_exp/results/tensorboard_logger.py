"""Logging to TensorBoard: event files in the run folder."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from dash_exp.results.trackers import flat_settings, numbers

FOLDER = "tensorboard"  # in the run folder
FLUSH_S = 10  # how old a curve is at most while the run trains; TensorBoard's own is two minutes


class EventLogger(TensorBoardLogger):
    """Lightning's logger in a folder that is known before, and with the hyper-parameters beside what the run came to."""

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        super().__init__(run_dir, name="", version=FOLDER, default_hp_metric=False, flush_secs=FLUSH_S)
        self.settings = settings

    def finish(self, run_dir: Path, result: Mapping[str, Any]) -> None:
        """The tab HPARAMS: settings and numbers of the result. It takes both at once, and only once."""
        self.log_hyperparams(self.settings, numbers(result), step=int(result.get("steps") or 0))
        self.experiment.add_text("status", str(result.get("status")))
        self.finalize(str(result.get("status")))


def tensorboard_logger(run_dir: Path, name: str, group: str | None, settings: dict[str, Any]) -> EventLogger:
    """Start event files in `run_dir`/tensorboard. `tensorboard --logdir` names runs by their folders and groups them so, which
    is what `name` and `group` say too.

    The files of an earlier attempt are deleted: a run that goes on gives all of its rows again.
    """
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    logger = EventLogger(run_dir, flat_settings(run_dir, settings))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    logger.experiment.add_text("config", textwrap.indent(text, "    "))  # indented, Markdown shows it as it is
    return logger
