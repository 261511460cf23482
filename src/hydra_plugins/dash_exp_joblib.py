"""Cells of a sweep in parallel on this machine: the launcher of hydra-joblib-launcher, for cells that resume.

It is in this package because Hydra finds plugins only here.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals

from dash_exp.commands.sweep import processes
from dash_exp.core import process
from dash_exp.core.errors import UserError

try:
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
except ImportError:  # it is not installed, which sweep.launchers reports
    JoblibLauncher = object


class CellLauncher(JoblibLauncher):
    """Ctrl-C and SIGTERM let the cells save. The cells end when the command ends, in whatever way.

    Where one process dies, joblib ends the others as well. A message reports it instead of joblib's traceback.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job, process_joblib_cfg
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        assert self.config is not None
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        task = processes.Task(self.task_function, self.config, of_command=True)
        stopped_by: list[int] = []

        def cells() -> Iterator[Any]:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                if stopped_by:
                    return
                yield delayed(execute_job)(number, overrides, self.hydra_context, self.config, task, Singleton.get_state())

        settings = {**self.joblib, "backend": "loky"}
        process_joblib_cfg(settings)  # numbers that its types declare as text
        try:
            with stopping_cells(stopped_by):
                returns = Parallel(**settings)(cells())
        except TerminatedWorkerError as error:
            if not stopped_by:
                raise UserError(
                    "hydra/launcher=joblib",
                    "the process of a cell was killed, for example for lack of memory, and those of the other cells with it",
                    "The same command resumes; hydra.launcher.n_jobs=1 runs one cell at a time",
                ) from error
        if stopped_by:
            print("stopped: the same command resumes the sweep", flush=True)
            raise KeyboardInterrupt if stopped_by[0] == signal.SIGINT else SystemExit(process.RESUME_ME)
        return returns


@contextmanager
def stopping_cells(stopped_by: list[int]) -> Iterator[None]:
    """Around the cells: the first SIGINT or SIGTERM is put into the list and makes every cell save. A second one ends them."""

    def stop(number: int, frame: Any) -> None:
        if stopped_by:
            raise KeyboardInterrupt
        stopped_by.append(number)
        threading.Thread(target=terminate, daemon=True).start()

    def terminate() -> None:
        while True:  # also those that are about to start
            for cell in multiprocessing.active_children():
                cell.terminate()
            time.sleep(1)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
