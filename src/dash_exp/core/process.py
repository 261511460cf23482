"""A run as a process: alone in its folder, and able to stop on a signal."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dash_exp.core.errors import UserError

RESUME_ME = 75  # exit status after SIGTERM: EX_TEMPFAIL of sysexits.h, "try again later"
INTERRUPTED = 130  # after Ctrl-C, as shells have it
# How many compiled products of matrices oneDNN and torch's layer above it keep on CPUs, one for each shape (1,024 by default).
# Micro-batches have new shapes all the time, and a decoded token needs a handful of them.
KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
LOCK_FILE = ".lock"  # of a run folder; the system releases it in whatever way the process ends


class _Outlasting(io.FileIO):
    """A file descriptor that drops what is written to it when nobody reads it any more, as in `python train.py | head`."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())  # also for what other code writes there
            return len(data)


def outlast_readers() -> None:
    """From here on, what is printed into a pipe whose reader has gone is dropped: the work goes on to its end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            continue
        stream.flush()
        file = io.BufferedWriter(_Outlasting(stream.fileno(), "wb", closefd=False))
        setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=stream.line_buffering))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Around a run: UserError where another process runs in the folder."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            str(folder), "another process is working in it", "Wait until it has ended, or choose another name=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process is working in this run folder."""
    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True


def keep_few_products() -> None:
    """Use `KEPT_PRODUCTS` from the first product on, where the user has not set these variables."""
    for name, number in KEPT_PRODUCTS.items():
        os.environ.setdefault(name, number)


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of torch and what comes with it: switches Python's garbage collector off, a fifth of the import's time.

    The collector starts whenever many objects were created, and finds no garbage among modules. Later collections skip them.
    """
    if "torch" in sys.modules:  # as in a later cell of a sweep, which may have left garbage
        yield
        return
    keep_few_products()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # some extensions complain at the end of what was not freed


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM, which a cluster sends before it takes the machine away, raises SystemExit(RESUME_ME) at once.

    Lightning would wait for the end of the sampling call. Only the first signal counts: after it the run saves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    stopped = False

    def leave(number: int, frame: Any) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise SystemExit(RESUME_ME)

    by_hand = signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        signal.signal(signal.SIGINT, by_hand or signal.SIG_DFL)


def end_with(parent: int) -> None:
    """From here on this process ends with the one that has started it, also where that one is killed: Linux sees to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before this
            sys.exit(1)


def stay_to_the_end() -> None:
    """From here on SIGTERM, SIGUSR2 and Ctrl-C are ignored: the rest takes a moment, and then the run is done."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def status_of_stop(error: BaseException | None) -> int | None:
    """The exit status where a signal stopped the process; None for other errors.

    C code that calls Python (autograd's hooks) replaces such an exception by its own, which has it as its context.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(error, SystemExit) and error.code in (RESUME_ME, None):  # None: Lightning's, after a SIGTERM
            return RESUME_ME
        error = error.__context__
    return None
