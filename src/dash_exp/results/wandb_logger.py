"""Logging to Weights & Biases during a run: online if this machine is logged in, else offline. It never asks for a login.

`wandb_runs.py` reads recorded runs; `wandb_report.py` creates a report from them.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger

from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.core.words import error_line
from dash_exp.results.run_folder import ID_FILE, RECORD_FILES, RESULT_FILE, SWEEP_FILE, write_result
from dash_exp.results.trackers import last_row, override_columns

log = logging.getLogger(__name__)

OLD_NAMES = {
    "api.forge.coreweave.com": ("api.wandb.ai",)
}  # older host names of the public server that a login may be stored under


ANSWER_S, UPLOAD_S, TELL_AFTER_S = 30.0, 600.0, 5.0  # W&B's answer at the start, the upload at the end, a line about the first


class StepLogger(WandbLogger):
    """Lightning's logger, with the outer step as W&B's step. A run that starts again does not send a row twice.

    W&B can only append to a run. If a run was interrupted, W&B keeps the rows it received; `sent` is the last of them. The new
    rows have the same numbers except for times. `record/metrics.csv` of the W&B run has all rows of the last attempt.
    """

    def __init__(self, experiment: Any, sent: int) -> None:
        super().__init__(experiment=experiment)
        self.sent = sent if experiment.offline else experiment.step - 1  # online, W&B knows the last row
        self.first = self.sent + 1 if experiment.offline else 0  # `wandb sync` counts from the last row in W&B
        self.row_open = False  # W&B sends a row when the next row starts

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.sent:
            self.experiment.log(dict(metrics), step=None if step is None else step - self.first)
            self.row_open = True

    def close_row(self) -> None:
        """Send the last row, if there is one, so that the summary written afterwards replaces its numbers."""
        if self.row_open:
            self.experiment.log({}, commit=True)

    def finish(self, run_dir: Path, result: Mapping[str, Any]) -> None:
        finish(self, run_dir, result)


def wandb_logger(
    run_dir: Path, name: str, group: str | None, settings: dict[str, Any], project: str, entity: str | None = None
) -> StepLogger:
    """Start a W&B run in `run_dir`/wandb. WANDB_MODE decides the mode if it is set; otherwise it is online with a login.

    The cells of a sweep share `group`. Where W&B does not answer, the run is recorded offline. The id of the W&B run stays the
    same when its folder is run again. `run_dir`/wandb of an earlier attempt is deleted, so only this attempt is uploaded. Call
    this while `metrics.csv` is still the file of the earlier attempt. Command-line overrides become columns
    (`override_columns`). Raises UserError where W&B takes the settings in no mode.
    """
    run_id, sent = identity(run_dir)
    shutil.rmtree(run_dir / "wandb", ignore_errors=True)
    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # an empty one would be refused
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    places_that_can_be_written(run_dir)

    def start(mode: str) -> Any:
        with waiting_is_told(mode):
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
                settings=wandb.Settings(silent=True, finish_timeout_raises=True, **limits()),
            )

    try:
        try:
            experiment = start(mode)
        except (wandb.errors.Error, ValueError, OSError) as error:  # training does not need W&B
            if mode != "online":
                raise
            wrong = error_line(error).rstrip(".")
            log.warning("W&B cannot be used (%s): the run is recorded offline; `wandb sync` uploads it later", wrong)
            wandb.teardown()  # the run that did not start holds its id
            shutil.rmtree(run_dir / "wandb", ignore_errors=True)  # it would count as sent
            experiment = start("offline")
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            "logger=wandb", f"W&B cannot be started ({error_line(error)})", "Correct it, or use logger=csv"
        ) from error
    save_record(experiment, run_dir, RECORD_FILES[:2])  # config and overrides now; `finish` adds the results
    return StepLogger(experiment, sent)


def limits() -> dict[str, Any]:
    """How long W&B is waited for, where the user does not say: its own limits are 90 s and none."""
    own = {"init_timeout": ANSWER_S, "finish_timeout": UPLOAD_S}
    return {name: seconds for name, seconds in own.items() if f"WANDB_{name.upper()}" not in os.environ}


@contextmanager
def waiting_is_told(mode: str) -> Iterator[None]:
    """Around the start of a run: a line that says what is waited for, where it takes longer than usual."""
    server = os.environ.get("WANDB_BASE_URL", "its server")
    text = f"waiting for an answer of W&B ({server}); without one the run is recorded offline"
    timer = threading.Timer(TELL_AFTER_S, print, [text], {"flush": True})
    if mode == "online":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@cache
def usual_places() -> dict[str, Path]:
    """W&B's folders for tables and other data, by the variables that choose them, where the user has not."""
    places = {wandb.env.DATA_DIR: Path(wandb.env.get_data_dir()), wandb.env.CACHE_DIR: wandb.env.get_cache_dir()}
    return {name: place for name, place in places.items() if name not in os.environ}


def places_that_can_be_written(run_dir: Path) -> None:
    """These folders are in the home folder; where that cannot be written, they are in the run folder."""
    for name, usual in usual_places().items():
        try:
            usual.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=usual).close()
        except OSError:
            os.environ[name] = str(run_dir.absolute() / "wandb_data" / name.lower())


def identity(run_dir: Path) -> tuple[str, int]:
    """The W&B id of the run in this folder, and the last outer step whose row W&B may already have (-1: none).

    Both are stored in a file of the folder, so the id moves with the folder, and folders with the same name in different places
    are different runs. An attempt may have sent rows if it was online, or if it was offline and was uploaded since, even
    partially (this leaves `.syncstate` without `.synced`).
    """
    file = run_dir / ID_FILE
    known = file.read_text(encoding="utf-8").split() if file.is_file() else []
    run_id, last = known if len(known) == 2 else (secrets.token_hex(6), "-1")
    sent = int(last)
    if any(run_dir.glob("wandb/run-*")) or any(run_dir.glob("wandb/offline-run-*/*.sync*")):
        sent = max(sent, last_row(run_dir))
    write_whole(file, f"{run_id}\n{sent}\n")
    return run_id, sent


def finish(tracker: StepLogger, run_dir: Path, result: Mapping[str, Any]) -> None:
    """Finish the W&B run, with the numbers of the result and the small files, whether the run succeeded or failed.

    The word "done" comes here before it comes into the run folder: a run that is killed in between is finished here again.
    """
    run = tracker.experiment
    tracker.close_row()  # otherwise it would be sent after the summary and replace numbers of the same name
    run.summary.update({k: v for k, v in result.items() if isinstance(v, (int, float))} | {"status": result.get("status")})
    save_record(run, run_dir, RECORD_FILES, result)
    run.finish(exit_code=0 if result.get("status") == "done" else 1)


def save_record(run: Any, run_dir: Path, names: Iterable[str], result: Mapping[str, Any] | None = None) -> None:
    """Upload these files of the run folder, if they exist, and the list of the sweep with the W&B run.

    They are copied first, because an offline run may be uploaded later from another place. They go into `record/`, because W&B
    has its own `config.yaml`. `result` takes the place of `result.json`.
    """
    for name, source in {**{n: run_dir / n for n in names}, SWEEP_FILE: run_dir.parent / SWEEP_FILE}.items():
        if source.is_file():
            copy = Path(run.dir) / "record" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name == RESULT_FILE and result is not None:
                write_result(copy.parent, result)
            else:
                shutil.copy(source, copy)
            run.save(copy, base_path=run.dir, policy="now", glob=False)  # cell names may contain brackets


def logged_in() -> bool:
    """Whether there is an API key in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc
    try:
        machines = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(machines.authenticators(name) for name in (host, *OLD_NAMES.get(host, ())))
