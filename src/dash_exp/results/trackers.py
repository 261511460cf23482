"""What the trackers of a run have in common: none of them can cost the run, and all have the same names.

A tracker is one of Lightning's loggers with `finish(run_dir, result)`: `wandb_logger.py`, `tensorboard_logger.py`,
`mlflow_logger.py`, `trackio_logger.py`. Each has a function that starts it, which `conf/logger/` names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger

from dash_exp.core import files
from dash_exp.core.metrics import read_metrics
from dash_exp.core.words import error_line
from dash_exp.results.run_folder import flat, overrides_by_key, same_numbers

log = logging.getLogger(__name__)


class Tracker(Logger):
    """Gives `logger` what it is told, until that raises an error: one line says so, and the run goes on without it.

    `title` names it in that line. Lightning calls `finalize` and `save` at the end of each evaluation too; they are not passed
    on, because only `finish` knows how the run ended.
    """

    def __init__(self, title: str, logger: Any) -> None:
        super().__init__()
        self.title, self.logger = title, logger
        self.has_failed = False

    @property
    def name(self) -> str:
        return self.title

    @property
    def version(self) -> None:
        return None

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: `logger` was given the settings when it was started."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.has_failed:
            with self._errors_said():
                self.logger.log_metrics(dict(metrics), step=step)

    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        """A table, where the tracker shows tables (W&B)."""
        if not self.has_failed and hasattr(self.logger, "log_text"):
            with self._errors_said():
                self.logger.log_text(key, columns=list(columns), data=list(data), step=step)

    def finish(self, run_dir: Path, result: Mapping[str, Any]) -> None:
        """Give it the result and close it, also where it failed before. A full disk is an error of the run too."""
        with self._errors_said(disk_too=False):
            self.logger.finish(run_dir, result)

    @contextmanager
    def _errors_said(self, disk_too: bool = True) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each package has errors of its own
            if files.trouble(error) and not disk_too:
                raise
            if not self.has_failed:
                log.warning("%s does not have all of this run (%s); the run folder has", self.title, error_line(error))
            self.has_failed = True


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `result.json` as `result/NAME`: some of the names are those of metrics of one outer step."""
    return {f"result/{name}": value for name, value in result.items() if isinstance(value, (int, float))}


def flat_settings(run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by the names of the command line (`optimizer.lr`), with the columns `cell` and `overrides.NAME` of W&B."""
    overrides = {f"overrides.{name}": value for name, value in override_columns(run_dir).items()}
    return {**dict(flat(settings)), "cell": run_dir.name, **overrides}


def override_columns(run_dir: Path) -> dict[str, str]:
    """`{"algo": "dash", "kl_coef": "0"}`: the overrides of the command line, for the columns `overrides.algo` and so on.

    W&B treats a dot in a column name as nesting, so the dots of a key become underscores.
    """
    file = run_dir / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return {column(key): value for key, value in overrides_by_key(overrides or []).items()}


def column(key: str) -> str:
    """The column name of an override key: `kl.coef` -> `kl_coef`."""
    return key.replace(".", "_")


def known_id(file: Path, settings: Mapping[str, Any]) -> str:
    """The id that a tracker gave the run of this folder, which its file keeps; "" without one.

    Also "" where that run had settings that give other numbers: this one starts from the beginning, and has other rows.
    """
    words = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return words[0] if words[1:] == [_digest(settings)] else ""


def keep_id(file: Path, run_id: str, settings: Mapping[str, Any]) -> None:
    """Keep the id for the next attempt, beside the digest of the settings."""
    files.write_whole(file, f"{run_id}\n{_digest(settings)}\n")


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(same_numbers(settings)).encode()).hexdigest()[:16]


def last_row(run_dir: Path) -> int:
    """The last outer step in `metrics.csv`, -1 without one. At the start of a run the file is that of the earlier attempt."""
    file = run_dir / "metrics.csv"
    return max((int(row["step"] or 0) for row in read_metrics(file)), default=-1) if file.is_file() else -1
