"""A rank of a run beside the first, which starts it (see `ranks`).

python -m dash_exp.commands.rank RUN_DIR INDEX SIZE PORT THREADS
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from dash_exp.commands import run
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.distributed.ranks import PATIENCE, Ranks

SHOW_AFTER_S = 3.0  # a traceback: the first rank most likely meets the same, and ends this one before


Work = Callable[[DictConfig, Path, Ranks], object]


def main(work: Work = run.follow) -> None:
    """The first rank hears SIGTERM, SIGUSR2 and Ctrl-C for all. The work is in a thread, where Lightning sets no handlers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    run_dir, index, size, port, threads = sys.argv[1:]
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    cfg = OmegaConf.load(Path(run_dir) / "config.yaml")
    assert isinstance(cfg, DictConfig)
    torch.set_num_threads(int(threads))
    status: list[int] = []
    follows = threading.Thread(
        target=lambda: status.append(_follow(work, cfg, Path(run_dir), int(index), int(size), int(port)))
    )
    follows.start()
    follows.join()
    sys.exit(status[0])


def _follow(work: Work, cfg: DictConfig, run_dir: Path, index: int, size: int, port: int) -> int:
    """The exit status."""
    logging.getLogger("dash_exp.core.watch").setLevel(logging.ERROR)  # every rank sees the same
    warnings.simplefilter("ignore")
    ranks = Ranks(index, size, dist.TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE))
    try:
        work(cfg, run_dir, ranks)
    except BaseException as error:
        ranks.say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(str(error))}")
        if not isinstance(error, UserError):
            time.sleep(SHOW_AFTER_S)
            traceback.print_exc()
        return 1
    return 0


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
