"""Ranks: the processes of one run, one for each device. Each runs the whole algorithm, and does its share of the work.

Every rank builds the same parts and runs the same outer steps. Sampling, grading and backward passes are divided among the
ranks. Completions are gathered before they are filtered: filter, counts, watch and record see the whole batch on every rank and
come to the same decisions. In an optimizer step only gradients and sums are added up, once, after its last micro-batch.

Why not Lightning's DDPStrategy: DistributedDataParallel adds gradients up inside backward passes, so it waits for ever where a
rank has fewer micro-batches than another, or none, as after filtering; it averages over ranks, whose shares have unequal sizes;
and Lightning's handler of SIGTERM broadcasts from whatever code the signal interrupts. Here each rank has its own Trainer with
one device, which knows nothing of the other ranks.

The first rank is the process that the user started. It starts the others (`python -m dash_exp.commands.rank`), which read the
settings from its run folder. Only the first rank writes. However it ends, the others end with it.
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

PATIENCE = timedelta(hours=2)  # for a rank that is alive and not there yet: it may be sampling
NOTICE_S = 3.0  # after a collective failed: until the end of the process that caused it is seen
GRACE_S = 30.0  # after a rank has died: for the run to end by itself, before it is killed
BUCKET = 2**24  # numbers that are added up in one call


class Ranks:
    """This process, number `index` of `size`. One alone, the default, exchanges nothing.

    `store`: where the ranks meet. `others`: the processes that this one has started.
    """

    def __init__(
        self, index: int = 0, size: int = 1, store: dist.Store | None = None, others: Sequence[subprocess.Popen[bytes]] = ()
    ) -> None:
        self.index = index
        self.size = size
        self._store = store
        self._others = others

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.index == 0

    def use_gpu(self) -> None:
        """Make the GPU with this rank's number the current one of this thread: before anything is put on a GPU."""
        if self.size > 1:
            torch.cuda.set_device(self.index)

    def join(self, gpus: bool = False) -> None:
        """Wait until every rank has started, and form the group. Raises UserError where one has ended before that.

        `gpus`: tensors on GPUs are exchanged too.
        """
        if self.size == 1:
            return
        assert self._store is not None
        self._store.add("here", 1)
        while self.first and self._store.add("here", 0) < self.size:
            if lost := self.lost():
                raise lost
            time.sleep(0.05)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",  # objects are sent by gloo in both cases
            store=dist.PrefixStore("group", self._store),
            rank=self.index,
            world_size=self.size,
            timeout=PATIENCE,
        )

    # --- exchange -------------------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of items that all ranks have: every `size`-th."""
        return items if self.size == 1 else items[self.index :: self.size]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks, on every rank. They are pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def join_shares(self, mine: Sequence[T]) -> list[T]:
        """The results of all ranks in the order of the items; `mine` has one for each item that `share` gave this rank."""
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
        """The `count` items of the first rank, on every rank. The items of other ranks are never read."""
        if self.size == 1:
            yield from items
            return
        for _ in range(count):
            yield self.from_first(next(items) if self.first else None)  # type: ignore[misc]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all ranks: the same bits on every rank."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    # --- the other processes -------------------------------------------------------------------------------------------

    def lost(self, within_s: float = 0.0) -> UserError | None:
        """The error for the user if another rank has ended, now or within `within_s` seconds; None if all are alive."""
        until = time.monotonic() + within_s
        while True:
            for number, process in enumerate(self._others, 1):
                status = process.poll()
                if status:  # 0: it reached the end of the run before this one
                    if status == -signal.SIGKILL:
                        how = "was killed (SIGKILL), as systems do when memory runs out"
                    elif status < 0:
                        how = f"was stopped by {signal.Signals(-status).name}"
                    else:
                        how = f"ended with status {status} ({self._reason(number)})"
                    return UserError(
                        f"rank {number} of {self.size}", how, "The same command resumes the run, or starts it again"
                    )
            if time.monotonic() >= until or not self._others:
                return None
            time.sleep(0.05)

    def say(self, why: str) -> None:
        """Tell the first rank why this one ends."""
        assert self._store is not None
        self._store.set(f"why/{self.index}", why)

    def _reason(self, number: int) -> str:
        key = f"why/{number}"
        return self._store.get(key).decode() if self._store and self._store.check([key]) else "no reason given"

    def end(self) -> None:
        """Kill the other processes and leave the group."""
        for process in self._others:
            process.kill()
        for process in self._others:
            process.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to `BUCKET` numbers together."""
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
    """Start the other `size - 1` ranks and give the first; all end with the block.

    The others run `module` with the settings in `run_dir`. On the CPU all ranks share its threads. If a rank has died and the
    run hangs, `told` is called with the error and the process ends with status 1.
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
    """Start one more rank. It ends when its standard input closes, so with this process. Ctrl-C does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, (run_dir, index, size, port, torch.get_num_threads()))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(ranks: Ranks, over: threading.Event, told: Callable[[UserError], None]) -> None:
    """End this process if a rank has died and this one still waits for it, as NCCL does."""
    while not over.wait(0.5):
        if (lost := ranks.lost()) and not over.wait(GRACE_S):
            told(lost)
            print(f"error: {lost}", file=sys.stderr, flush=True)
            os._exit(1)
