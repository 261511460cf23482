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

    `run` and `close` are for other threads, everything else for the tasks in it. Tasks call `notify` after each change that
    others may wait for.
    """

    def __init__(self, name: str) -> None:
        self.failure: Exception | None = None  # of a task; raised for who waits
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._changed = asyncio.Event()  # replaced at each change

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop, and wait for it. Raises RuntimeError if it is closed meanwhile."""
        if self._closed:
            work.close()
            raise RuntimeError(f"the {self._name} were closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=self._name)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise RuntimeError(f"the {self._name} were closed") from error
        finally:
            future.cancel()  # where Ctrl-C ended the wait

    def close(self, last: Callable[[], Coroutine[Any, Any, None]], within_s: float) -> None:
        """End all tasks, do one last thing, and end the thread."""
        if self._closed or self._loop is None or self._thread is None:
            self._closed = True
            return
        self._closed = True
        with suppress(concurrent.futures.CancelledError, concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result(timeout=within_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=within_s)

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await last()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def until(self, true: Callable[[], bool], within_s: float | None = None) -> None:
        """Wait until something is true, or for some seconds. Raises `failure`, once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.failure is None and not true():
                    await self.change()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
