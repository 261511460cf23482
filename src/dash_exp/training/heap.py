"""Freed memory is given back to the system between the phases of an outer step on a CPU, and between passes if it piles up."""

from __future__ import annotations

import ctypes
import math
import time
from pathlib import Path
from typing import Any

import lightning as L

LEAST_S = 20.0  # from one time to the next: pages that are given back have to be taken again, tenths of a second for a GiB
GROWTH = 1.2  # of the process since the first backward pass of a batch, from which pages are given back between passes
STATM = Path("/proc/self/statm")


class Heap(L.Callback):
    """Gives back what is free before each update, after it and after each evaluation, and between backward passes where the
    process has grown by a fifth; at most once in `least_s` seconds.

    glibc keeps freed tensors of up to 32 MiB in its heap, between others that stay: gradients, moments. Tensors of other sizes
    do not fit the gaps, and every micro-batch has sizes of its own, so the heap of a real model grows for many outer steps.
    Where sampling and backward passes take turns, as with `batch=coupled`, it grows within one of them.
    Nothing is done for a policy on a GPU, nor where the C library has no `malloc_trim`.
    """

    def __init__(self, least_s: float = LEAST_S) -> None:
        self.least_s = least_s
        self._last = 0.0
        self._least = math.inf  # pages of the process after a backward pass of this batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._give_back(trainer)
        self._least = math.inf

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.strategy.root_device.type == "cpu" and STATM.exists():
            pages = resident_pages()
            self._least = min(self._least, pages)
            if pages > GROWTH * self._least:
                self._give_back(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back(trainer)

    def _give_back(self, trainer: L.Trainer) -> None:
        now = time.perf_counter()
        if trainer.strategy.root_device.type == "cpu" and now - self._last >= self.least_s:
            trim()
            self._last = now


def resident_pages() -> int:
    """Pages of this process that are in memory."""
    return int(STATM.read_text(encoding="ascii").split()[1])


def trim() -> None:
    """Give the system the pages of the heap that hold nothing, where the C library can."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
