"""Calls in worker processes, each with a limit on its time and on its memory. Imports nothing heavy: every worker loads it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

log = logging.getLogger(__name__)

TRIES = 3  # for a call whose worker died, which may have been another call's fault, or the system's
MESSAGE = 200  # characters of an exception's message


@dataclass(frozen=True)
class Results:
    """What each call returned, None where it did not; how many took too long; how many broke."""

    values: list[Any]
    timeouts: int
    errors: int


class Workers:
    """`count` processes that serve calls from any thread.

    A process that needs more than `timeout_s` seconds for one call is killed and replaced. A call that needs more than
    `memory_mb` MiB beyond what its process has already breaks, and a process that keeps half of that is replaced (on Linux;
    elsewhere memory is not limited). The processes start with the first calls, by `first` and without a time limit, and serve
    every later one.
    """

    def __init__(self, first: Callable[[], None], timeout_s: float, count: int, memory_mb: int) -> None:
        self.first, self.timeout_s, self.count, self.memory_mb = first, timeout_s, count, memory_mb
        self._pool: ProcessPool | None = None

    def map(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], names: Sequence[str]) -> Results:
        """`function(*call)` for each call; `names` are for the log. Arguments and results must be plain values."""
        values: list[Any] = [None] * len(calls)
        broke: dict[int, str] = {}
        timeouts, left = 0, list(range(len(calls)))
        for _ in range(TRIES):
            pool = self._running()
            futures = [(i, pool.schedule(attempt, args=[function, *calls[i]], timeout=self.timeout_s)) for i in left]
            left = []
            for i, future in futures:
                broke.pop(i, None)
                try:
                    values[i], error = future.result()
                except FutureTimeoutError:
                    timeouts += 1
                    continue
                except (ProcessExpired, BrokenProcessPool) as death:
                    error = f"{type(death).__name__}: {death}"
                    left.append(i)
                except Exception as other:  # on the way there or back
                    error = in_words(other)
                if error:
                    broke[i] = error
            if not left:
                break
        for i, error in broke.items():
            log.warning("grading failed on %s: %s", names[i], error)
        return Results(values, timeouts, len(broke))

    def _running(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:  # all its processes died while none had a call
            self.close()
        if self._pool is None:
            # spawn: forking a process that runs torch's threads can deadlock the child
            context = multiprocessing.get_context("spawn")
            arguments = (self.first, self.memory_mb)
            self._pool = ProcessPool(max_workers=self.count, initializer=start, initargs=arguments, context=context)
        return self._pool

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


# --- in a worker -------------------------------------------------------------------------------------------------------

_memory_bytes, _full_bytes = 0, 0  # of address space for a call; of memory in use before one


def start(first: Callable[[], None], memory_mb: int) -> None:
    """First thing in a worker."""
    global _memory_bytes, _full_bytes
    # A handler of Python's would wait for the end of a computation in C, and the pool 3 s for the handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    first()
    _memory_bytes = memory_mb * 2**20
    _full_bytes = size()[1] + _memory_bytes // 2


def attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, str | None]:
    """What the call returns and None, or None and in words what broke.

    In words, since not every exception of a library survives the way between processes: one that does not ends the pool.
    """
    if size()[1] > _full_bytes:  # earlier calls left it in caches: another worker has this one
        os._exit(1)
    try:
        with limited():
            return function(*args), None
    except Exception as error:
        return None, in_words(error)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """The limit on memory holds for the call alone: a worker that lacks memory to answer would take the call with it."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = size()[0] + _memory_bytes
    if most > _memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def size() -> tuple[int, int]:
    """Bytes of address space and of memory in use of this process; 0, 0 where the system does not say (Linux does)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def in_words(error: BaseException) -> str:
    """Not `str(error)`, which can itself break: on an integer of 5,000 digits, or out of memory."""
    message = next((a for a in error.args if isinstance(a, str)), "").strip()
    return f"{type(error).__name__}: {message[:MESSAGE]}"
