"""Cells of a sweep in processes of their own, which joblib and Ray start."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from dash_exp.commands.sweep.cells import lists_its_cells
from dash_exp.core import process

GRACE_S = 60.0  # for the cells to save, after the command was stopped or has died


class Task:
    """The sweep's task, in a process that runs one cell after the other.

    A cell that is stopped (SIGTERM, or KeyboardInterrupt where Ray raises it) saves, and the process continues: the other cells
    are run, and the ledger has the status of this one. Only a search gets an exception, because it needs a number.
    With `of_command` the process is a child of the command: it ends when the command has died, and ignores Ctrl-C on their
    terminal, which the command handles.
    """

    def __init__(self, task: Callable[[DictConfig], Any], config: DictConfig, of_command: bool) -> None:
        self.task, self.searches = task, not lists_its_cells(config)
        self.command = os.getpid() if of_command else None

    def __call__(self, cfg: DictConfig) -> Any:
        process.outlast_readers()
        if self.command and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # the first cell of this process
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: None)  # between two cells, where there is nothing to save
            threading.Thread(target=_end_with, args=(self.command,), daemon=True, name="command").start()
        try:
            with process.leaving_on_sigterm():
                return self.task(cfg)
        except (KeyboardInterrupt, SystemExit) as error:
            if self.command and os.getppid() != self.command:
                os._exit(process.RESUME_ME)
            if self.searches:
                raise RuntimeError("the process of this cell was stopped") from error
            return None


def _end_with(command: int) -> None:
    """After the death of the command the cell saves, and this process ends."""
    while os.getppid() == command:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(process.RESUME_ME)


def lost(config: DictConfig, wrong: str) -> JobReturn:
    """What is returned for a cell whose process ended without a result: a failure to a search. In a list of cells the ledger
    has the status of each.
    """
    print(wrong, flush=True)
    returned = JobReturn(status=JobStatus.COMPLETED)
    if not lists_its_cells(config):
        returned = JobReturn(status=JobStatus.FAILED)
        returned.return_value = RuntimeError(wrong)
    return returned
