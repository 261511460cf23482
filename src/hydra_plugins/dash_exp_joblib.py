"""Cells of a sweep side by side on this machine: the launcher of hydra-joblib-launcher, for cells that can stop and go on.

It stands in this package because Hydra takes plugins from no other.
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

from dash_exp.commands import beside
from dash_exp.core import process
from dash_exp.core.errors import UserError

try:
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
except ImportError:  # it is not installed, as sweep.check_launcher says
    JoblibLauncher = object


class CellLauncher(JoblibLauncher):
    """Ctrl-C and SIGTERM let the cells save, and they end with the command whichever way it ends.

    Where one dies joblib ends the others as well, which is told instead of its traceback.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job, process_joblib_cfg
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        assert self.config is not None
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        task = beside.Task(self.task_function, self.config, of_command=True)
        told: list[int] = []

        def cells() -> Iterator[Any]:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                if told:
                    return
                yield delayed(execute_job)(number, overrides, self.hydra_context, self.config, task, Singleton.get_state())

        settings = {**self.joblib, "backend": "loky"}
        process_joblib_cfg(settings)  # numbers that its types have as text
        try:
            with telling_cells(told):
                returns = Parallel(**settings)(cells())
        except TerminatedWorkerError as error:
            if not told:
                raise UserError(
                    "hydra/launcher=joblib",
                    "the process of a cell was killed, as by a system that runs out of memory, and those of the others with it",
                    "The same command goes on; hydra.launcher.n_jobs=1 runs one cell at a time",
                ) from error
        if told:
            print("stopped: the same command goes on", flush=True)
            raise KeyboardInterrupt if told[0] == signal.SIGINT else SystemExit(process.RESUME_ME)
        return returns


@contextmanager
def telling_cells(told: list[int]) -> Iterator[None]:
    """Around the cells: the first SIGINT or SIGTERM is put into the list, and tells every cell to save; a second ends them."""

    def tell(number: int, frame: Any) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)
        threading.Thread(target=terminate, daemon=True).start()

    def terminate() -> None:
        while True:  # also those that are about to start
            for cell in multiprocessing.active_children():
                cell.terminate()
            time.sleep(1)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
