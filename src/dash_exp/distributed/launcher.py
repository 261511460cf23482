"""Several ranks on this machine, each a process, by torch's elastic launcher: what `torchrun --standalone` does.

It ends all of them where one fails, and names it. A signal to this process is passed on, and they have time to save.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SAVE_S = 600  # for the ranks to save after a signal; where one of them has died, the launcher gives the others 30 s
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def launch(size: int, module: str, arguments: Sequence[object], on_cpu: bool) -> Mapping[int, ProcessFailure]:
    """Run `python -m MODULE ARGUMENTS...` in `size` processes and wait for them. Returns those that failed, by rank.

    On the CPU they share the threads of this process.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the caller says what is wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id="run",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="none",  # those of this process stay: what they raise here ends the ranks with SIGTERM
        shutdown_timeout=SAVE_S,
    )
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if on_cpu:
        variables["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // size))
    try:
        with _environment(variables):
            elastic_launch(config, sys.executable)("-m", module, *map(str, arguments))
    except ChildFailedError as error:
        return error.failures
    return {}


def end_with_parent() -> None:
    """The launcher cannot end its ranks where it is killed itself; so they ask Linux for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
