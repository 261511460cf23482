"""The processes of one command, on one or several machines: where they meet, what the first leads, and whether all are there.

torchrun, srun or `launcher` has started them; Lightning's environments know how. They meet in a store (torch's TCPStore): in
torchrun on the first machine, or where Slurm started them in the first process. The first rank does what the command says. It
puts the settings of each run into the store, from where the others take them, so they need neither Hydra nor a shared disk.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed.rendezvous import rendezvous

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.distributed import beats, place
from dash_exp.distributed.beats import BEAT_S, GONE_S, SILENCE_S, Beats

GRACE_S = 30.0  # after a rank has gone: for this process to end by itself, before it is ended as it is
LEAVE_S = 3.0  # after the first rank has left: for the others, which may be sampling
ADDRESS_OF = 0x8915  # SIOCGIFADDR of linux/sockios.h
AGAIN = "The same command resumes the run, or starts it again"
GONE = "its process has ended, or its machine, or the link to it"


class RankLostError(UserError):
    """Another rank has gone, or the store."""


class Trainers(SLURMEnvironment):
    """Lightning's of Slurm, without the nodes whose servers sample."""

    def world_size(self) -> int:
        """The ranks."""
        return place.size()

    def global_rank(self) -> int:
        """This rank."""
        return place.index()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """The number of nodes is that of the whole job."""
        super().validate_settings(num_devices, num_nodes + place.server_nodes())


def environment() -> ClusterEnvironment:
    """Lightning's, of what has started this process. UserError as in `slurm`."""
    if place.size() == 1:
        return LightningEnvironment()
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else slurm()


def slurm() -> Trainers:
    """That of Slurm. It must not requeue the job itself, and load a pickle.

    UserError where srun was not told how many tasks a node has.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # that srun is not used, in a job named `interactive`
            return Trainers(auto_requeue=False)
    except RuntimeError as error:
        wrong = f"has started {place.size()} tasks and was not told how many a node has"
        raise UserError("srun", wrong, "Add --ntasks-per-node=N: the number of ranks on each node") from error


class World:
    """This process, number `index` of `size`, and number `local` on its machine."""

    def __init__(self) -> None:
        found = environment()
        self.index, self.size, self.local = found.global_rank(), found.world_size(), found.local_rank()
        os.environ |= {"MASTER_ADDR": found.main_address, "MASTER_PORT": str(found.main_port)}
        self.address = f"{found.main_address}:{found.main_port}"  # of the store
        self.store = self._connection()
        use_link_to(self._elsewhere(found.main_address))
        self.run = 0  # number of the run that the first rank leads now, or led last
        self.silence_s = SILENCE_S  # without a sign of life, until a rank is missed
        self.stuck = False  # a collective cannot end any more: Python must not wait for it when the process ends
        self._beats = Beats(self._connection(), self.index, self.size)

    @property
    def first(self) -> bool:
        """Whether this is the rank that the others follow."""
        return self.index == 0

    def _connection(self) -> dist.Store:
        url = f"env://?rank={self.index}&world_size={self.size}"
        try:
            store = next(iter(rendezvous(url, timeout=timedelta(seconds=beats.START_S))))[0]
        except RuntimeError as error:
            wrong = f"{self.size} processes cannot meet there ({error_line(error).rstrip('.')})"
            right = "Each must reach this address, and no other program may have it; MASTER_PORT chooses another port on Slurm"
            raise UserError(self.address, wrong, right) from error
        return dist.PrefixStore(place.start(), store)

    def _elsewhere(self, first: str) -> str:
        """The address of the first rank; or where this machine takes that for itself, one of a rank on another machine.

        On Debian the name of a machine stands for 127.0.1.1 on this machine, and for its address in the network on others.
        """
        own = own_address(first)
        self.store.set(f"address/{self.index}", own)
        if place.machines() == 1 or not own.startswith("127."):
            return first
        try:
            found = (self.store.get(f"address/{rank}").decode() for rank in range(self.size))
            return next((address for address in found if address and not address.startswith("127.")), first)
        except RuntimeError as error:
            wrong = f"not all {self.size} processes have met there ({error_line(error).rstrip('.')})"
            raise UserError(self.address, wrong, "Look at the output of the others") from error

    # --- runs: led by the first, followed by the others -----------------------------------------------------------------

    def begin(self, settings: str) -> None:
        """The first rank leads the next run, with these settings."""
        self.run += 1
        self.store.set(f"run/{self.run}", settings)

    def next_run(self) -> str | None:
        """The settings of the next run, when the first rank begins it; None when it leaves."""
        while not self.store.check([f"run/{self.run + 1}"]):
            if self._beats.left:
                return None
            time.sleep(0.05)
        self.run += 1
        return self.store.get(f"run/{self.run}").decode()

    def end_run(self) -> None:
        """The first rank has ended its run."""
        if self.first:
            with suppress(RuntimeError):  # the store has gone
                self.store.set(f"over/{self.run}", "1")

    def is_over(self) -> bool:
        """Whether the first rank has ended the run that this one is in, or leaves."""
        return not self.first and (self._beats.left or self.store.check([f"over/{self.run}"]))

    def is_over_within(self, seconds: float) -> bool:
        """The same, after so many seconds at most."""
        until = time.monotonic() + seconds
        while not (over := self.is_over()) and time.monotonic() < until:
            time.sleep(0.05)
        return over

    def say(self, why: str) -> None:
        """Tell the first rank why this one has failed in the run."""
        self.store.set(f"why/{self.index}", f"{self.run} {why}")

    # --- whether all are there ------------------------------------------------------------------------------------------

    def lost(self, silence_s: float | None = None, within_s: float = 0.0) -> RankLostError | None:
        """The error for the user where another rank has gone, or the store; None where all are there. The others look for the
        first alone.

        `silence_s`: without a sign of life. `within_s`: how long to look.
        """
        until, silence_s = time.monotonic() + within_s, silence_s or self.silence_s
        while not (found := self._beats.missing(self.run, silence_s)) and time.monotonic() < until:
            time.sleep(0.05)
        if found and not found[1].why:
            time.sleep(beats.SURE_S)
            found = self._beats.missing(self.run, silence_s)
        if not found:
            return None
        index, heard = found
        if self.first and self._beats.broken and not heard.why:
            return RankLostError(f"the store at {self.address}", "has gone (torchrun on this machine has ended)", AGAIN)
        where = f"rank {index} of {self.size}" + (f" on {heard.host}" if heard.host else "")
        silent = f"not heard of for {time.monotonic() - heard.at:.0f} s: {GONE}"
        return RankLostError(where, f"ended ({heard.why})" if heard.why else silent, AGAIN)

    def expect_the_end(self, *_: object) -> None:
        """As a handler of SIGTERM: what ends this process ends the first too, which is not waited for when it is silent."""
        self.silence_s = GONE_S

    @contextmanager
    def watched(self, told: Callable[[RankLostError], UserError]) -> Iterator[None]:
        """Around a run that waits for other ranks: where one has gone and the run hangs in a collective, `told` is called with
        the error and gives the one to print, and the process ends with status 1.
        """
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over, told), daemon=True, name="ranks").start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, told: Callable[[RankLostError], UserError]) -> None:
        grace_s = GRACE_S if self.first else 0  # the others have nothing to save
        while not over.wait(0.5):
            if not self.first and self._beats.left and not over.wait(LEAVE_S):
                os._exit(0)
            if self.lost() and not over.wait(grace_s) and (lost := self.lost()):
                print(f"error: {told(lost)}", file=sys.stderr, flush=True)
                os._exit(1)

    # --- the end --------------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """The first rank tells the others that it leaves. They do the same, in whatever they are."""
        with suppress(RuntimeError):
            self.store.set("left", "1")

    def leave(self) -> None:
        """At the end of the process. The first rank waits a moment until the others have left: the store may be in it."""
        with suppress(RuntimeError):
            if not self.first:
                self.store.add("gone", 1)
            else:
                self.let_go()
                until = time.monotonic() + LEAVE_S + 2 * BEAT_S
                while self.store.add("gone", 0) < self.size - 1 and not self.lost(LEAVE_S) and time.monotonic() < until:
                    time.sleep(0.05)
        self._beats.end()


_here: World | None = None


def entered() -> World:
    """The world of this process. The first call waits until the first rank is there."""
    global _here
    if _here is None:
        _here = World()
    return _here


def left() -> None:
    """After this the process is in no world."""
    global _here
    _here = None


def own_address(to: str) -> str:
    """The address of this machine in the network that leads there; "" where none does."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((to, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return ""


def use_link_to(address: str) -> None:
    """Have gloo use the network that leads to this address, unless the user has said which (GLOO_SOCKET_IFNAME).

    gloo takes the one that the name of this machine stands for, which on Debian is the machine itself: nobody else gets there.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    own = own_address(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), ADDRESS_OF, asked)[20:24]) == own:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return
