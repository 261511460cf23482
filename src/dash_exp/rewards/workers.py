"""Calls in worker processes, each with a limit on its time and on its memory. `worker` is what runs in such a process.

The processes are started by a command line and not by `multiprocessing`, whose processes import the script that the user runs:
without `if __name__ == "__main__":` in that script each of them would start processes of its own, without end.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

from dash_exp.rewards.worker import TIME_IS_UP, WAIT, in_words

log = logging.getLogger(__name__)

TRIES = 3  # for a call whose worker died: an earlier call, or the system, may have been the cause
# The program of a worker. It finds modules where this process finds them.
PROGRAM = "import sys; sys.path[:] = {path!r}; from dash_exp.rewards import worker; worker.serve({descriptor}, {memory_mb})"


class CallError(Exception):
    """The call raised an exception, which the message gives in words."""


class WorkerDiedError(Exception):
    """The process ended before it answered."""


@dataclass(frozen=True)
class Results:
    """`values[i]` is what call i returned, None if it failed; how many calls took too long, and how many failed otherwise."""

    values: list[Any]
    timeouts: int
    errors: int


class Workers:
    """Up to `count` processes that serve calls from any thread.

    A process that computes for more than `timeout_s` seconds on one call is killed and replaced: seconds of its processor, so a
    busy machine changes no result. So is one that waits for `WAIT` times as long. A call that needs more than
    `memory_mb` MiB in addition to what its process already holds fails, and a process that keeps half of that is replaced (on
    Linux; elsewhere memory is not limited). A process is started when a call finds none that is idle; it first runs `first()`,
    without a time limit, and then serves every later call. Functions must be importable by module and name.
    """

    def __init__(self, first: Callable[[], None], timeout_s: float, count: int, memory_mb: int) -> None:
        self.first, self.timeout_s, self.count, self.memory_mb = first, timeout_s, count, memory_mb
        # `count` places, the one last used on top; None where no process has been started yet.
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._started: weakref.WeakSet[_Worker] = weakref.WeakSet()
        self._closes = 0
        self._lock = threading.Lock()  # of `_started` and `_closes`

    def map(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], names: Sequence[str]) -> Results:
        """`function(*call)` for each call; `names` are for the log. Arguments and results must be plain values.

        Raises RuntimeError where `first()` fails in a process. Whatever ends it early, such as Ctrl-C, kills the processes and
        waits for no call.
        """
        values: list[Any] = [None] * len(calls)
        timeouts = errors = 0
        stopped = threading.Event()
        threads = ThreadPoolExecutor(self.count, thread_name_prefix="grading")
        try:
            for i, future in enumerate([threads.submit(self._call, function, call, stopped) for call in calls]):
                try:
                    values[i] = future.result()
                except TimeoutError:
                    timeouts += 1
                except (CallError, WorkerDiedError) as error:
                    errors += 1
                    log.warning("grading failed on %s: %s", names[i], error)
        except BaseException:
            stopped.set()
            self.close()
            raise
        finally:
            threads.shutdown(wait=not stopped.is_set(), cancel_futures=True)
        return Results(values, timeouts, errors)

    def _call(self, function: Callable[..., Any], call: tuple[Any, ...], stopped: threading.Event) -> Any:
        for _ in range(TRIES - 1):
            try:
                return self._try(function, call)
            except WorkerDiedError:
                if stopped.is_set():
                    raise
        return self._try(function, call)

    def _try(self, function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        closes, is_late = self._closes, False
        try:
            if worker is None or worker.is_dead():
                worker = None
                worker = self._start()
            return worker.call(function, call, self.timeout_s)
        except TimeoutError:
            is_late = True
            threading.Thread(target=self._replace, args=(closes,), name="grading", daemon=True).start()
            raise
        finally:
            if not is_late:
                self._idle.put(worker)

    def _replace(self, closes: int) -> None:
        """Start a process in place of one that was killed; it is ended if `close` was called since the call that was late, with
        `closes` calls before. It takes a second, which passes beside what comes after grading.
        """
        worker = None
        try:
            worker = self._start()
            with self._lock:
                if self._closes > closes:
                    worker.kill()
        except (WorkerDiedError, RuntimeError):
            pass  # the next call starts one, or says why not
        finally:
            self._idle.put(worker)

    def _start(self) -> _Worker:
        try:
            worker = _Worker(self.memory_mb)
        except OSError as error:
            raise WorkerDiedError(f"no process can be started: {error.strerror}") from error
        with self._lock:
            self._started.add(worker)
        try:
            worker.call(self.first, (), None)
        except CallError as error:
            worker.kill()
            raise RuntimeError(f"no process for grading can be started: {error}") from error
        return worker

    def close(self) -> None:
        """Kill the processes; calls that they are working on fail. A later call starts new ones."""
        with self._lock:
            self._closes += 1
            for worker in self._started:
                worker.kill()


class _Worker:
    """One process. It ends by itself when this process is gone, which it sees from the connection between them."""

    def __init__(self, memory_mb: int) -> None:
        self.connection, theirs = Pipe()
        path = [folder or os.getcwd() for folder in sys.path]
        program = PROGRAM.format(path=path, descriptor=theirs.fileno(), memory_mb=memory_mb)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float | None) -> Any:
        """`function(*arguments)`, computed in the process. After TimeoutError or WorkerDiedError the process is gone."""
        try:
            self.connection.send((function, arguments, timeout_s))
            is_answered = self.connection.poll(timeout_s and WAIT * timeout_s)
            value, error = self.connection.recv() if is_answered else (None, None)
        except (EOFError, OSError) as lost:
            self.kill()
            if -self.process.returncode in TIME_IS_UP:
                raise TimeoutError from lost
            raise WorkerDiedError(f"the process ended with status {self.process.returncode}") from lost
        except Exception as other:  # pickling failed, on the way there or back
            raise CallError(in_words(other)) from other
        if not is_answered:
            self.kill()
            raise TimeoutError
        if error:
            raise CallError(error)
        return value

    def kill(self) -> None:
        """Kill the process, whatever it is doing, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
