"""An event loop in a thread of its own, for tasks that go on beside the callers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """A thread with an event loop, started when it is first used.

    `run` and `close` are for other threads, `notify` and `until` for the tasks in it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._closed = False
        self._ended = asyncio.Event()
        self._changed = asyncio.Event()  # replaced at each change

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop, and wait for it. Raises RuntimeError if it is closed meanwhile."""
        if self._closed:
            work.close()
            raise RuntimeError(f"the {self._name} were closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise RuntimeError(f"the {self._name} were closed") from error
        finally:
            future.cancel()  # where Ctrl-C ended the wait

    def _work(self) -> None:
        assert self._loop is not None
        loop = self._loop
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels at its end what is not finished
            runner.run(self._ended.wait())

    def close(self, within_s: float) -> None:
        """Cancel all tasks and end the thread. What does not end within some seconds is left behind."""
        if self._loop is not None and not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(within_s)
        self._closed = True

    def notify(self) -> None:
        """To be called after each change that others may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, true: Callable[[], object], within_s: float | None = None) -> None:
        """Wait until something is true, or for some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not true():
                    await self._changed.wait()
