"""Work in a thread beside training, one piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread. Signals do not reach it: what interrupts the main thread leaves the work going on; `wait` waits for it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether there is work that is not done."""
        return self._last is not None and not self._last.done()

    def start(self, work: Callable[[], None]) -> None:
        """Do `work` in the thread. Waits for what was started before, and raises what that raised."""
        self.wait()
        self._last = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the work raised, if it has ended; waits for nothing."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Until the work is done. Raises what it raised, once."""
        if self._last is None:
            return
        try:
            self._last.result()
        finally:
            if self._last.done():  # not where the wait was interrupted
                self._last = None
