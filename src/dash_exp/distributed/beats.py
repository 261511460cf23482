"""Signs of life: each rank leaves one in the store every second, so that one that has gone is found and named.

A process that dies closes its connections, and the others notice at once that something is wrong, but not what. A machine whose
cable is cut closes nothing: without this the others would wait for it for hours.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from dataclasses import dataclass

import torch.distributed as dist

BEAT_S = 1.0
GONE_S = 4.0  # without a sign of life, after a collective has failed
SILENCE_S = 30.0  # without a sign of life, while nothing else says that something is wrong
SURE_S = 2.0  # until a second look must find the same: a process that was stopped itself looks before it has heard
LATE_S = 5.0  # between two looks of this process itself: it was stopped meanwhile, or the machine was
START_S = 600.0  # until the first sign of life: processes of a cluster start one after the other


@dataclass
class Heard:
    """The last sign of life of a rank: when it came, by `time.monotonic`; its machine, "" before the first; in which run it has
    failed, and why.
    """

    at: float
    beat: str = ""
    host: str = ""
    failed_in: int = 0
    why: str = ""


class Beats:
    """The signs of life of rank `index`, and what it hears of the others: the first of all, the others of the first.

    `store`: a connection of its own, because an answer that does not come blocks it. `left`: the first rank has said that it
    leaves. `broken`: the process or the machine where the store is has gone.
    """

    def __init__(self, store: dist.Store, index: int, size: int) -> None:
        self.left = self.broken = False
        self._store, self._index = store, index
        self._answered = time.monotonic()  # when the store last answered
        self._over = threading.Event()
        self._of = {i: Heard(self._answered) for i in (range(1, size) if index == 0 else [0])}
        threading.Thread(target=self._beat, daemon=True, name="beats").start()

    def missing(self, run: int, within_s: float) -> tuple[int, Heard] | None:
        """A rank that has said why it failed in this run, or was not heard of for so many seconds, and what is known of it."""
        for i, heard in self._of.items():
            if heard.failed_in == run and heard.why:
                return i, heard
        now = time.monotonic()
        for i, heard in self._of.items():
            limit_s = within_s if heard.beat else START_S
            if self.broken or max(now - heard.at, now - self._answered) > limit_s:
                return i, heard
        return None

    def end(self) -> None:
        self._over.set()

    def _beat(self) -> None:
        host = socket.gethostname()
        try:
            for number in itertools.count():
                self._store.set(f"beat/{self._index}", f"{number} {host}")
                looks_late = time.monotonic() - self._answered > LATE_S
                for i, heard in self._of.items():
                    self._look(i, heard, looks_late)
                self.left = self._store.check(["left"])
                self._answered = time.monotonic()
                if self._over.wait(BEAT_S):
                    return
        except RuntimeError:
            self.broken = True

    def _look(self, index: int, heard: Heard, looks_late: bool) -> None:
        if looks_late:
            heard.at = time.monotonic()  # the silence was here
        if self._store.check([f"beat/{index}"]):
            beat = self._store.get(f"beat/{index}").decode()
            if beat != heard.beat:
                heard.at, heard.beat, heard.host = time.monotonic(), beat, beat.partition(" ")[2]
        if self._store.check([f"why/{index}"]):
            run, _, why = self._store.get(f"why/{index}").decode().partition(" ")
            heard.failed_in, heard.why = int(run), why
