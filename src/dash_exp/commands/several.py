"""A run of several ranks on this machine: torch's launcher starts them, and what has ended them becomes one message."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.distributed import launcher
from dash_exp.results.run_folder import read_result, snapshots, write_result

RANK = "dash_exp.commands.rank"  # the module that each of them runs
TOLD = "UserError: "  # before the message of one, in the file of a process that failed
STOPPED = {process.RESUME_ME: process.RESUME_ME, process.INTERRUPTED: process.INTERRUPTED, -signal.SIGTERM: process.RESUME_ME}


def launched(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> dict[str, Any]:
    """The result of the run whose settings are in `run_dir`. Exits as `run.run` does; UserError for what else has ended it."""
    size, on_cpu = cfg.trainer.devices, cfg.trainer.accelerator == "cpu"
    ended: BaseException | None = None
    try:
        if failures := launcher.launch(size, RANK, [run_dir, in_sweep, time.time()], on_cpu):
            ended = cause(failures, size, f"The same command {way_on(run_dir)}")
    except BaseException as error:
        if (leave := process.status_of_stop(error)) is None:
            raise
        ended = SystemExit(leave)
    result = read_result(run_dir)
    if ended is None or result.get("status") == "done":  # also where a signal came in the last moments
        return result
    if isinstance(ended, SystemExit) and not result:  # before the first rank had begun
        write_result(run_dir, {"status": "stopped"})
    raise ended


def cause(failures: Mapping[int, ProcessFailure], size: int, right: str) -> UserError | SystemExit:
    """What has ended the ranks that failed, by rank: the first of them, and in the same second one that a signal has killed,
    before those that broke without it.
    """
    others = {rank: f for rank, f in failures.items() if f.exitcode not in STOPPED}  # the launcher has stopped the rest
    if not others:
        return SystemExit(STOPPED[failures[min(failures)].exitcode])
    rank, failure = min(others.items(), key=lambda each: (each[1].timestamp, each[1].exitcode >= 0, each[0]))
    where, message = f"rank {rank} of {size}", said(failure)
    if failure.exitcode == -signal.SIGKILL:
        return UserError(where, "was killed (SIGKILL), as systems do when memory runs out", right)
    if failure.exitcode < 0:
        return UserError(where, f"was stopped by {failure.signal_name()}", right)
    if message.startswith(TOLD):
        return UserError(message.removeprefix(TOLD), "", "")
    return UserError(where, f"ended with status {failure.exitcode} ({message})", right)


def said(failure: ProcessFailure) -> str:
    """What a process has written about its end."""
    message: Any = failure.message
    return str(message["message"] if isinstance(message, Mapping) else message)


def way_on(run_dir: Path) -> str:
    """What the same command does when it is run again."""
    newest = next(iter(snapshots(run_dir)), None)
    if newest is None:
        return "starts from the beginning"
    return f"resumes after outer step {int(newest.stem.split('_')[1].split('-')[0])} in {run_dir}"
