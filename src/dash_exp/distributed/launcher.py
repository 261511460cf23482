"""Several ranks on this machine, each a process, by torch's elastic launcher: what `torchrun --standalone` does.

It ends all of them where one fails, and names it. A signal to this process is passed on, and they have time to save.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SAVE_S = 600  # for the ranks to save after a signal; where one of them has died, the launcher gives the others 30 s


def launch(size: int, module: str, arguments: Sequence[object], on_cpu: bool) -> Mapping[int, ProcessFailure]:
    """Run `python -m MODULE PARENT ARGUMENTS...` in `size` processes and wait for them. Returns those that failed, by rank.

    PARENT: the id of this process (see `process.end_with`). On the CPU they share the threads of this process.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the caller says what is wrong
    variables = [f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"]
    if on_cpu:
        variables.append(f"OMP_NUM_THREADS={max(1, torch.get_num_threads() // size)}")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            logs_specs=DefaultLogsSpecs(folder),
            run_id="run",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle="none",  # those of this process stay: what they raise here ends the ranks with SIGTERM
            shutdown_timeout=SAVE_S,
        )
        command = [*variables, sys.executable, "-m", module, str(os.getpid()), *map(str, arguments)]
        try:
            elastic_launch(config, "env")(*command)
        except ChildFailedError as error:
            return error.failures
    return {}


def _interrupt(number: int, frame: Any) -> None:
    """Ctrl-C. Another one would end the ranks while they save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
