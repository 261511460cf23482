"""Programs in processes that are forked from one which has everything imported (`preloaded.py`), so that a start costs little.

To a test such a process is one of its own: it has its arguments, folder, variables and output as `python PROGRAM` would have
them, and hears signals. What is not the same: it leaves without the functions of `atexit`, and
what `preloaded.py` says.
"""

import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")


def process(target: Callable[..., None], *arguments: Any, daemon: bool = False) -> BaseProcess:
    """A process that does `target(*arguments)`, started."""
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    CONTEXT.set_forkserver_preload(["preloaded"])
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    made = CONTEXT.Process(target=target, args=arguments, daemon=daemon)
    made.start()
    return made


class Program:
    """`python NAME ...` for the name of a file, otherwise `python -m NAME ...`; used as `subprocess.Popen` is."""

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str], output: Path, errors: Path
    ) -> None:
        self.process = process(_run, name, arguments, folder, variables, output, errors)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _run(name: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str], output: Path, errors: Path) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the tests, however they end
    for number, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [name, *arguments]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
