"""The processes of one run, one for each device: each goes through the whole algorithm, and does its share of the work.

Every rank builds the same parts and takes the same outer steps. Sampling, grading and backward passes are shared out. What is
sampled is gathered before it is filtered, so that filter, counts, watch and record see the whole batch on every rank and come
to the same decisions. Of an optimizer step only gradients and sums are added up, once, after its last micro-batch.

Why not Lightning's DDPStrategy: DistributedDataParallel adds gradients up inside backward passes, so it waits for ever where
a rank has fewer micro-batches than another or none, as after filtering; its mean over ranks is that of shares of unequal size;
and Lightning's handler of SIGTERM broadcasts from wherever the signal arrives. Here each rank has a Trainer of its own with
one device, and does not know of the others.

The first rank is the process that the user started. It starts the others (`python -m dash_exp.commands.rank`), which read the
settings from its run folder; it alone writes, and whichever way it ends, they end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dash_exp.core.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # with a rank that lives and does not come: one may be sampling
NOTICE_S = 3.0  # after a collective broke: for the end of the process that broke it to be seen
GRACE_S = 30.0  # after a rank has died: for the run to end by itself, before it is ended
BUCKET = 2**24  # numbers that are added up at a time


class Ranks:
    """This process among `size`: the one with number `index`. One alone, the default, gathers and adds up nothing."""

    def __init__(
        self, index: int = 0, size: int = 1, store: dist.Store | None = None, others: Sequence[subprocess.Popen[bytes]] = ()
    ) -> None:
        self.index = index
        self.size = size
        self._store = store
        self._others = others  # the processes that this one has started

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.index == 0

    def join(self, gpus: bool = False) -> None:
        """Wait until every rank is here. UserError where one has died before."""
        if self.size == 1:
            return
        assert self._store is not None
        self._store.add("here", 1)
        while self.first and self._store.add("here", 0) < self.size:
            if lost := self.lost():
                raise lost
            time.sleep(0.05)
        if gpus:
            torch.cuda.set_device(self.index)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",  # objects go by gloo on both
            store=dist.PrefixStore("group", self._store),
            rank=self.index,
            world_size=self.size,
            timeout=PATIENCE,
        )

    # --- what is shared out and comes together -------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all ranks have: every `size`-th."""
        return items if self.size == 1 else items[self.index :: self.size]

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order, on every rank. It is pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def join_shares(self, mine: Sequence[T]) -> list[T]:
        """What became of the items that `share` gave each rank, one for one, in the order of the items."""
        shares = self.gather(list(mine))
        joined: list[Any] = [None] * sum(map(len, shares))
        for index, share in enumerate(shares):
            joined[index :: self.size] = share
        return joined

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank. It is pickled."""
        if self.size == 1:
            return value
        values: list[Any] = [value if self.first else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def each_from_first(self, items: Iterator[T], count: int) -> Iterator[T]:
        """The `count` items of the first rank, on every rank. Those of the others are never asked for."""
        if self.size == 1:
            yield from items
            return
        for _ in range(count):
            yield self.from_first(next(items) if self.first else None)  # type: ignore[misc]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum of those of all ranks, bit by bit the same on each."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    # --- the other processes -------------------------------------------------------------------------------------------

    def lost(self, within_s: float = 0.0) -> UserError | None:
        """What the user is told where another rank has ended, now or within some seconds; None where all live."""
        until = time.monotonic() + within_s
        while True:
            for number, process in enumerate(self._others, 1):
                status = process.poll()
                if status:  # 0: it came to the end of the run before this one
                    if status == -signal.SIGKILL:
                        how = "was killed (SIGKILL), as a system does that runs out of memory"
                    elif status < 0:
                        how = f"was ended by {signal.Signals(-status).name}"
                    else:
                        how = f"ended with status {status} ({self._said(number)})"
                    return UserError(f"rank {number} of {self.size}", how, "The same command goes on, or begins again")
            if time.monotonic() >= until or not self._others:
                return None
            time.sleep(0.05)

    def say(self, why: str) -> None:
        """Leave the first rank word of why this one ends."""
        assert self._store is not None
        self._store.set(f"why/{self.index}", why)

    def _said(self, number: int) -> str:
        key = f"why/{number}"
        return self._store.get(key).decode() if self._store and self._store.check([key]) else "it said nothing"

    def end(self) -> None:
        """End the others, who have nothing to say any more, and leave the group."""
        for process in self._others:
            process.kill()
        for process in self._others:
            process.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, up to `BUCKET` numbers."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# --- starting the others -----------------------------------------------------------------------------------------------


@contextmanager
def started(
    size: int, run_dir: Path, on_cpu: bool, told: Callable[[UserError], None], module: str = "dash_exp.commands.rank"
) -> Iterator[Ranks]:
    """Around a run: the first of `size` ranks, with the others started; they end with the block.

    On the CPU they share its threads. Where a rank has died and the run hangs, `told` is given the error and the process ends.
    The others run `module`.
    """
    if size == 1:
        yield Ranks()
        return
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    threads = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(max(1, threads // size))
    ranks = Ranks(0, size, store, [start(module, run_dir, index, size, store.port) for index in range(1, size)])
    over = threading.Event()
    threading.Thread(target=_watch, args=(ranks, over, told), daemon=True, name="ranks").start()
    try:
        yield ranks
    finally:
        over.set()
        ranks.end()
        torch.set_num_threads(threads)


def start(module: str, run_dir: Path, index: int, size: int, port: int) -> subprocess.Popen[bytes]:
    """One more rank. It ends when its standard input does, so with this process; Ctrl-C on a terminal does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, (run_dir, index, size, port, torch.get_num_threads()))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(ranks: Ranks, over: threading.Event, told: Callable[[UserError], None]) -> None:
    """End this process where a rank has died and it waits for it all the same, as NCCL does."""
    while not over.wait(0.5):
        if (lost := ranks.lost()) and not over.wait(GRACE_S):
            told(lost)
            print(f"error: {lost}", file=sys.stderr, flush=True)
            os._exit(1)
