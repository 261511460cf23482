"""Weights & Biases while a run goes on: online where the machine is logged in, offline where it is not, and never a question.

What was recorded is read back by `wandb_runs.py` and shown in a report by `wandb_report.py`.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from dash_exp.core.files import write_whole
from dash_exp.core.metrics import read_metrics
from dash_exp.core.words import first_line
from dash_exp.results.run_folder import ID_FILE, RECORD_FILES, SWEEP_FILE, overrides_by_key, read_result

log = logging.getLogger(__name__)

OLD_NAMES = {"api.forge.coreweave.com": ("api.wandb.ai",)}  # under which a login at the public server may still stand


class StepLogger(WandbLogger):
    """Lightning's logger, but W&B's own step is the outer step, and a run that begins again sends no row a second time.

    W&B only ever appends to a run, so of one that was interrupted it keeps the rows that it got, the last of them `sent`. They
    are the same numbers but for the seconds; `metrics.csv` in the run's `record/` has all rows of the last attempt.
    """

    def __init__(self, experiment: Any, sent: int) -> None:
        super().__init__(experiment=experiment)
        self.sent = sent if experiment.offline else experiment.step - 1  # online, W&B says where the run stands
        self.first = self.sent + 1 if experiment.offline else 0  # `wandb sync` counts from the last row that W&B has
        self.row_open = False  # W&B sends a row when the next one begins

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.sent:
            self.experiment.log(dict(metrics), step=None if step is None else step - self.first)
            self.row_open = True

    def close_row(self) -> None:
        """Send the last row, if there is one: what is put into the summary afterwards replaces its numbers."""
        if self.row_open:
            self.experiment.log({}, commit=True)


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

    def start(mode: str) -> Any:
        return wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            resume="allow",
            name=name,
            group=group,
            dir=run_dir,
            config=settings | {"cell": run_dir.name, "overrides": override_columns(run_dir)},
            mode=cast(Any, mode),
            settings=wandb.Settings(silent=True),
        )

    try:
        experiment = start(os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline"))
    except wandb.errors.CommError as error:  # training does not depend on it
        log.warning("W&B is not reached (%s): recorded offline, `wandb sync` uploads it later", first_line(str(error)))
        experiment = start("offline")
    save_record(experiment, run_dir, RECORD_FILES[:2])  # what it is; `finish` adds what came of it
    return StepLogger(experiment, sent)


def identity(run_dir: Path) -> tuple[str, int]:
    """The W&B id of the run in this folder, and the last outer step whose row W&B may have already; -1 = none.

    Both are kept in a file of the folder: so the id moves with it, and folders of the same name in different places are
    different runs. An attempt may have sent its rows if it was online, or offline and uploaded since, be it in part (which
    leaves `.syncstate` without `.synced`).
    """
    file = run_dir / ID_FILE
    known = file.read_text().split() if file.is_file() else []
    run_id, last = known if len(known) == 2 else (secrets.token_hex(6), "-1")
    sent = int(last)
    if any(run_dir.glob("wandb/run-*")) or any(run_dir.glob("wandb/offline-run-*/*.sync*")):
        rows = read_metrics(run_dir / "metrics.csv") if (run_dir / "metrics.csv").is_file() else []
        sent = max([sent, *(int(row["step"] or 0) for row in rows)])
    write_whole(file, f"{run_id}\n{sent}\n")
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
    """End the W&B run of a run that ended, well or not, with the numbers of `result.json` and the small files."""
    run = tracker.experiment
    result = read_result(run_dir)
    tracker.close_row()  # else it would come after the summary, and replace its numbers of the same name
    run.summary.update({k: v for k, v in result.items() if isinstance(v, (int, float))} | {"status": result.get("status")})
    save_record(run, run_dir, RECORD_FILES)
    run.finish(exit_code=0 if result.get("status") == "done" else 1)


def save_record(run: Any, run_dir: Path, names: Iterable[str]) -> None:
    """Keep those of these files that exist, and the list of the sweep, with the W&B run.

    They are copied, because an offline run is uploaded later, perhaps from another place. They go into `record/`, because W&B
    keeps a `config.yaml` of its own beside it.
    """
    for name, source in {**{n: run_dir / n for n in names}, SWEEP_FILE: run_dir.parent / SWEEP_FILE}.items():
        if source.is_file():
            copy = Path(run.dir) / "record" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
            run.save(copy, base_path=run.dir, policy="now", glob=False)  # the name of a cell may have brackets


def logged_in() -> bool:
    """Whether an API key stands in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc
    try:
        machines = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(machines.authenticators(name) for name in (host, *OLD_NAMES.get(host, ())))
