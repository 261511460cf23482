"""Ranks: the processes of one run, one for each device. Each runs the whole algorithm, and does its share of the work.

Every rank builds the same parts and runs the same outer steps. Sampling, grading and backward passes are divided among the
ranks. Completions are gathered before they are filtered: filter, counts, watch and record see the whole batch on every rank and
come to the same decisions. In an optimizer step only gradients and sums are added up, once, after its last micro-batch.

Only the first rank writes. What starts the processes, and how a rank that has gone is found, is in `world`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.utils._pytree import tree_map_only

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.distributed.beats import GONE_S
from dash_exp.distributed.world import AGAIN, RankLostError, World

T = TypeVar("T")

READY_S = 1800.0  # for all ranks to load the model and their data
CONNECT = timedelta(minutes=5)  # for gloo, from each to each
PATIENCE = timedelta(days=1)  # for a rank that is alive and not there yet: it may be sampling; `look` finds one that has gone
NOTICE_S = 8.0  # after a collective failed: until the rank that caused it has said why, or is missed
LOOK_S = 0.5  # between two looks whether all ranks are there, while one waits
BUCKET = 2**24  # numbers that are added up in one call


class OverError(Exception):
    """The first rank has ended the run before this one has come to its end."""


class Ranks:
    """This process, number `index` of `size`, in one run. One alone, the default, exchanges nothing.

    `world`: the processes of the command, None for one alone.
    """

    def __init__(self, index: int = 0, size: int = 1, world: World | None = None) -> None:
        self.index = index
        self.size = size
        self.world = world
        self._unfinished: dist.Work | None = None  # a collective that was broken off

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.index == 0

    @property
    def local(self) -> int:
        """This rank's number on its machine, so that of its GPU."""
        return self.world.local if self.world else self.index

    def use_gpu(self) -> None:
        """Make this rank's GPU the current one of this thread: before anything is put on a GPU."""
        if self.size > 1:
            torch.cuda.set_device(self.local)

    def join(self, gpus: bool = False) -> None:
        """Wait until every rank is ready, and form the group. Raises UserError where one has gone before, or does not come.

        `gpus`: tensors on GPUs are exchanged too.
        """
        if self.world is None:
            return
        store = dist.PrefixStore(f"ranks/{self.world.run}", self.world.store)
        store.set(f"here/{self.index}", "1")
        until = time.monotonic() + READY_S
        while not store.check([f"here/{i}" for i in range(self.size)]):
            self.look()
            if time.monotonic() > until:
                late = next(i for i in range(self.size) if not store.check([f"here/{i}"]))
                raise RankLostError(f"rank {late} of {self.size}", f"was not ready within {READY_S:.0f} s", AGAIN)
            time.sleep(0.05)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",  # objects are sent by gloo in both cases
                store=dist.PrefixStore("group", store),
                rank=self.index,
                world_size=self.size,
                timeout=CONNECT,
            )
        except RuntimeError as error:
            how = "Let every machine reach every other on all ports, or name their network: GLOO_SOCKET_IFNAME=..."
            unconnected = UserError("the ranks", f"cannot be connected ({error_line(error).rstrip('.')})", how)
            raise self.lost(NOTICE_S) or unconnected from error
        _set_pg_timeout(PATIENCE)

    # --- exchange -------------------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of items that all ranks have: every `size`-th."""
        return items if self.size == 1 else items[self.index :: self.size]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks, on every rank. They are pickled: give arrays, not numbers."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            self._arrive()
            dist.all_gather_object(values, value)
        return values

    def join_shares(self, mine: Sequence[T]) -> list[T]:
        """The results of all ranks in the order of the items; `mine` has one for each item that `share` gave this rank."""
        return dealt_back(self.gather(list(mine)))

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank. It is pickled: give arrays, not numbers."""
        given = [value]
        if self.size > 1:
            self._arrive()
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def tensors_from_first(self, value: Any) -> Any:
        """The same for nested dicts and lists with large tensors in CPU memory, which are sent one by one."""
        if self.size == 1:
            return value
        kinds = self.from_first(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value) if self.first else None)
        return tree_map_only(Tensor, self._tensor_from_first, value if self.first else kinds)

    def _tensor_from_first(self, tensor: Tensor) -> Tensor:
        sent = tensor.contiguous() if self.first else torch.empty(tensor.shape, dtype=tensor.dtype)
        if sent.numel():
            dist.broadcast(sent.view(-1).view(torch.uint8), src=0)
        return sent

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
        self._arrive()
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    # --- waiting --------------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        """Wait until all ranks have come here: what they exchange then takes no longer than the network does.

        Raises RankLostError as soon as another rank is missed, OverError where the run is over, and lets signals in. gloo and
        NCCL do none of this.
        """
        pause_s, looked = 1e-4, time.monotonic()
        self._unfinished = work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not work.is_completed():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5e-3)
            if time.monotonic() - looked > LOOK_S:
                self.look()
                looked = time.monotonic()
        self._unfinished = None
        work.wait()  # raises what has ended it

    def look(self) -> None:
        """Raise RankLostError where another rank has gone, OverError where the run is over."""
        assert self.world is not None
        if lost := self.world.lost():
            raise lost
        if self.world.is_over():
            raise OverError

    def lost(self, within_s: float) -> RankLostError | None:
        """The error for the user if a collective has failed because another rank has gone: found within so many seconds."""
        return self.world.lost(GONE_S, within_s) if self.world else None

    def end(self) -> None:
        """Leave the group: its connections close, which ends what other ranks wait for.

        Its threads are ended as well. They must not be there when Python ends: they would use what is no longer there. They
        stay where a collective that was broken off cannot end (`World.stuck`): nothing comes through a link any more, or
        another rank has an error that refers to sharded weights, which keep its connections open. The next run has a group of
        its own.
        """
        if self.world is None:
            return
        self.world.end_run()
        if not dist.is_initialized():
            return
        until = time.monotonic() + NOTICE_S
        while self._unfinished and not self._unfinished.is_completed() and time.monotonic() < until:
            time.sleep(0.05)
        if self._unfinished and not self._unfinished.is_completed():
            self.world.stuck = True
            _left.append(dist.group.WORLD)  # a group that nothing refers to waits for its threads
        dist.destroy_process_group()


ALONE = Ranks()
_left: list[Any] = []


@contextmanager
def of_run(world: World, told: Callable[[RankLostError], UserError] | None = None) -> Iterator[Ranks]:
    """Around one rank's part in the run that the first one leads. If a rank has gone and the run hangs, `told` is called with
    the error and gives the one to print, and the process ends with status 1.
    """
    ranks = Ranks(world.index, world.size, world)
    with world.watched(told) if told else nullcontext():
        try:
            yield ranks
        except (SystemExit, KeyboardInterrupt):
            world.let_go()  # before the end: a rank that is sampling is not waited for
            raise
        finally:
            ranks.end()


def is_of_a_link(error: BaseException) -> bool:
    """Whether a collective has failed because another rank has left it: not an error of this one."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def dealt_back(shares: Sequence[Sequence[T]]) -> list[T]:
    """In the order of the items, what ranks made of those that `Ranks.share` gave them."""
    joined: list[Any] = [None] * sum(map(len, shares))
    for index, share in enumerate(shares):
        joined[index :: len(shares)] = share
    return joined


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
