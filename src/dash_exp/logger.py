"""Weights & Biases while a run goes on: online where the machine is logged in, offline where it is not, and never a question.

What was recorded is read back by `wandb_runs.py` and shown in a report by `wandb_report.py`.
"""

from __future__ import annotations

import netrc
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from dash_exp.metrics import read_metrics
from dash_exp.results import ID_FILE, RECORD_FILES, SWEEP_FILE, overrides_by_key, read_result


class StepLogger(WandbLogger):
    """Lightning's logger, but W&B's own step is the outer step, and a run that begins again sends no row a second time.

    W&B only ever appends to a run, so of one that was interrupted it keeps the rows that it got. They are the same numbers but
    for the seconds; `metrics.csv` in the run's `record/` has all rows of the last attempt. `sent`: the last of those rows.
    """

    def __init__(self, experiment: Any, sent: int) -> None:
        super().__init__(experiment=experiment)
        self.sent = sent

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.sent:
            self.experiment.log(dict(metrics), step=step)


def wandb_logger(
    run_dir: Path, name: str, group: str | None, settings: dict[str, Any], project: str, entity: str | None = None
) -> StepLogger:
    """A W&B run in `run_dir`/wandb. WANDB_MODE decides where it is set; otherwise a login means online.

    Arms of a sweep share `group`. The run has the same id whenever its folder is run again. What an earlier attempt left in
    `run_dir`/wandb is removed, as its other leftovers are: this attempt begins from the start, and only it is to be uploaded.
    It must be called while `metrics.csv` is still that of the earlier attempt. Command-line overrides are columns of their own
    (`override_columns`).
    """
    run_id, sent = identity(run_dir)
    shutil.rmtree(run_dir / "wandb", ignore_errors=True)
    experiment = wandb.init(
        project=project,
        entity=entity,
        id=run_id,
        resume="allow",
        name=name,
        group=group,
        dir=run_dir,
        config=settings | {"cell": run_dir.name, "overrides": override_columns(run_dir)},
        mode=cast(Any, os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")),
        settings=wandb.Settings(silent=True),
    )
    return StepLogger(experiment, max(sent, experiment.step - 1))  # online, W&B says where the run stands


def identity(run_dir: Path) -> tuple[str, int]:
    """The W&B id of the run in this folder, and the last outer step whose row W&B may have already; -1 = none.

    Both are kept in a file of the folder: so the id moves with it, and folders of the same name in different places are
    different runs. An attempt may have sent its rows if it was online, or offline and uploaded since.
    """
    file = run_dir / ID_FILE
    run_id, last = file.read_text().split() if file.is_file() else (secrets.token_hex(6), "-1")
    sent = int(last)
    if any(run_dir.glob("wandb/run-*")) or any(run_dir.glob("wandb/offline-run-*/*.synced")):
        rows = read_metrics(run_dir / "metrics.csv") if (run_dir / "metrics.csv").is_file() else []
        sent = max([sent, *(int(row["step"] or 0) for row in rows)])
    file.write_text(f"{run_id}\n{sent}\n")
    return run_id, sent


def override_columns(run_dir: Path) -> dict[str, str]:
    """`{"algo": "dash", "kl_coef": "0"}`: the overrides of the command line, for the columns `overrides.algo` and so on.

    W&B reads a dot in the name of a column as a level, so a key's dots become underscores.
    """
    file = run_dir / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(file.read_text()) if file.is_file() else None
    return {column(key): value for key, value in overrides_by_key(overrides or []).items()}


def column(key: str) -> str:
    """The name in W&B of an override's key: `kl.coef` -> `kl_coef`."""
    return key.replace(".", "_")


def finish(tracker: StepLogger, run_dir: Path) -> None:
    """End the W&B run of a run that ended, well or not: numbers of `result.json` into the summary, small files into `record/`.

    The files are copied, because an offline run is uploaded later, perhaps from another place. They have a folder of their
    own, because W&B keeps a `config.yaml` of its own beside it.
    """
    run = tracker.experiment
    result = read_result(run_dir)
    run.summary.update({k: v for k, v in result.items() if isinstance(v, (int, float))} | {"status": result.get("status")})
    record = Path(run.dir) / "record"
    sources = {name: run_dir / name for name in RECORD_FILES} | {SWEEP_FILE: run_dir.parent / SWEEP_FILE}
    for name, source in sources.items():
        if source.is_file():
            (record / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, record / name)
            run.save(record / name, base_path=run.dir, policy="now", glob=False)  # the name of a cell may have brackets
    run.finish(exit_code=0 if result.get("status") == "done" else 1)


def logged_in() -> bool:
    """Whether an API key stands in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
