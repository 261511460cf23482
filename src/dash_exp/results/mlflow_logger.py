"""Logging to MLflow: a server, or a database file on this machine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from dash_exp.core.files import writing_in
from dash_exp.results.trackers import flat_settings, keep_id, known_id, numbers

ID_FILE = "mlflow_id"  # in the run folder
STORE = "sqlite:///mlflow.db"  # MLflow's own default, in the current folder; it no longer takes a folder of files
# What holds where the user does not say: its own limits are 2 minutes and 7 tries, in which the run would stand still.
VARIABLES = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}
STATES = {"done": "FINISHED", "stopped": "KILLED"}  # MLflow's words for a status; all others are FAILED


class RowLogger(MLFlowLogger):
    """Lightning's logger, which gives each row once: MLflow would keep a second point of an outer step beside the first."""

    sent = -1  # the last outer step that MLflow has

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.sent:
            super().log_metrics({allowed(name): value for name, value in metrics.items()}, step)

    def finish(self, run_dir: Path, result: Mapping[str, Any]) -> None:
        """The numbers of the result, its status as a tag, and MLflow's own word for it."""
        status = str(result.get("status"))
        super().log_metrics({allowed(name): value for name, value in numbers(result).items()}, int(result.get("steps") or 0))
        self.experiment.set_tag(self.run_id, "status", status)
        self.experiment.set_terminated(self.run_id, STATES.get(status, "FAILED"))


def mlflow_logger(
    run_dir: Path,
    name: str,
    group: str | None,
    settings: dict[str, Any],
    experiment: str,
    tracking_uri: str | None = None,
) -> RowLogger:
    """Start an MLflow run, or go on with that of this folder, whose id the file `mlflow_id` keeps.

    The cells of a sweep share the tag `group`. A parameter of MLflow cannot change: those of a run that goes on are its first
    ones, which give the same numbers.
    """
    for variable, value in VARIABLES.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient  # it reads some of them when it is imported

    quiet()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or STORE
    known = known_id(run_dir / ID_FILE, settings)
    tags = {"group": group} if group else None
    with alone_at(uri):
        run_id = known if known and is_there(MlflowClient(uri), known) else None
        logger = RowLogger(experiment, run_name=name, tracking_uri=uri, tags=tags, run_id=run_id)
        client = logger.experiment  # this starts a run where there is none
    if run_id is not None:
        client.update_run(run_id, status="RUNNING")
        logger.sent = max((point.step for point in client.get_metric_history(run_id, "step")), default=-1)
        return logger
    keep_id(run_dir / ID_FILE, str(logger.run_id), settings)
    logger.log_hyperparams({allowed(key): value for key, value in flat_settings(run_dir, settings).items()})
    return logger


def alone_at(uri: str) -> AbstractContextManager[None]:
    """Around the start of a run: of two that make the tables of a database file, or an experiment in it, one would fail."""
    if not uri.startswith("sqlite:"):
        return nullcontext()
    folder = Path(uri.removeprefix("sqlite:///")).parent
    folder.mkdir(parents=True, exist_ok=True)  # as MLflow does
    return writing_in(folder)


def is_there(client: Any, run_id: str) -> bool:
    """Whether the store has this run; it may have been deleted there, or the settings may name another store."""
    from mlflow import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def allowed(name: str) -> str:
    """`eval/in_dist/pass@8` -> `eval/in_dist/pass_at_8`: MLflow, or Lightning's logger of it, takes no other characters."""
    return re.sub(r"[^a-zA-Z0-9_/. -]", "_", name.replace("@", "_at_"))


def quiet() -> None:
    """No line for each table of a new database, nor for a new experiment."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
