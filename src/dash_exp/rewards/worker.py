"""What runs in a worker process of `workers`: calls come in over a connection, results go out. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MESSAGE = 200  # characters of an exception's message
WAIT = 10  # until a call has computed for its time limit, this many times the limit may pass: on a busy machine
SPARE_S = 2.0  # and after that this long until it is killed from outside, before the process ends by itself
TIME_IS_UP = (signal.SIGPROF, signal.SIGALRM)  # what a process dies of then


def serve(descriptor: int, memory_mb: int) -> None:
    """Answer calls until the other end of the connection is closed.

    The first call runs without a limit on its memory. A call that comes when earlier ones have left more than half of
    `memory_mb` MiB in caches ends the process: another process has to take it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of a terminal; the one that asks decides
    memory_bytes: int | None = None
    most_bytes = 0
    with Connection(descriptor) as connection:
        while True:
            try:
                function, arguments, timeout_s = connection.recv()
            except (EOFError, ConnectionError):
                return
            except Exception as error:  # a function that cannot be imported here
                connection.send((None, in_words(error)))
                continue
            if memory_bytes is not None and size()[1] > most_bytes:
                os._exit(1)
            answer = attempt(function, arguments, timeout_s, memory_bytes)
            if memory_bytes is None:
                memory_bytes = memory_mb * 2**20
                most_bytes = size()[1] + memory_bytes // 2
            try:
                connection.send(answer)
            except ConnectionError:
                return
            except Exception as error:  # a result that cannot be pickled
                connection.send((None, in_words(error)))


def attempt(
    function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float | None, memory_bytes: int | None
) -> tuple[Any, str | None]:
    """The result of the call and None, or None and in words what failed.

    In words, since not every exception of a library can be pickled and read back.
    """
    try:
        with limited_time(timeout_s), limited_memory(memory_bytes):
            return function(*arguments), None
    except Exception as error:
        return None, in_words(error)


@contextlib.contextmanager
def limited_time(timeout_s: float | None) -> Iterator[None]:
    """The system kills this process when it has computed for `timeout_s` seconds; and if it takes much longer than it may wait:
    where the one that asked has been killed, nobody else does.

    It kills by default, without a handler: a handler of Python's would wait for the end of a computation in C.
    """
    signal.setitimer(signal.ITIMER_PROF, timeout_s or 0)
    signal.setitimer(signal.ITIMER_REAL, 0 if timeout_s is None else WAIT * timeout_s + SPARE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def limited_memory(memory_bytes: int | None) -> Iterator[None]:
    """Limits the address space that is added within the block. Outside of it a process needs memory to answer."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = size()[0]
    if memory_bytes is not None and in_use:
        most = in_use + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def size() -> tuple[int, int]:
    """Bytes of address space and of memory in use of this process; 0, 0 where the system does not say (Linux does)."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    except OSError:
        return 0, 0
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def in_words(error: BaseException) -> str:
    """Not `str(error)`, which can itself fail: on an integer of 5,000 digits, or out of memory."""
    message = next((a for a in error.args if isinstance(a, str)), "").strip()
    return f"{type(error).__name__}: {message[:MESSAGE]}"
