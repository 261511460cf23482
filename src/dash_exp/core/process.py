"""A run as a process: alone in its folder, and ready to be told to leave."""

from __future__ import annotations

import atexit
import gc
import signal
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
LOCK_FILE = ".lock"  # of a run folder; the system releases it whichever way the process ends


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Around a run: UserError where another process runs in the folder."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            str(folder), "another process is at work in it", "Wait until it has ended, or choose another name=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process is at work in this run folder."""
    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of torch and what goes with it: without Python's search for cycles of garbage, a fifth of the time.

    The search starts whenever many objects were made, and finds nothing among modules. Later ones leave these objects out.
    """
    if "torch" in sys.modules:  # as in a later cell of a sweep, which may have left garbage
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # some extensions complain at the end of what was not freed


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM, as a cluster sends it before it takes the machine away, raises SystemExit(RESUME_ME) where the program stands.

    Lightning would wait for the end of the sampling call. Only the first one counts: what is done then is the saving.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only a main thread may set this
        return
    told = False

    def leave(number: int, frame: Any) -> None:
        nonlocal told
        if not told:
            told = True
            raise SystemExit(RESUME_ME)

    by_hand = signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        signal.signal(signal.SIGINT, by_hand or signal.SIG_DFL)


def stay_to_the_end() -> None:
    """From here on SIGTERM, SIGUSR2 and Ctrl-C are not heard: what is left takes a moment, and the run is done."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def status_of_stop(error: BaseException | None) -> int | None:
    """The exit status where the process was told to leave; None for other errors.

    Code in C that calls Python (autograd's hooks) makes of such an exception one of its own, which has it as its context.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(error, SystemExit) and error.code in (RESUME_ME, None):  # None: Lightning's, after a SIGTERM
            return RESUME_ME
        error = error.__context__
    return None
