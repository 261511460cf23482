"""Where the sampling servers of a Slurm job are: their addresses, on the way from its last nodes to the first rank.

They go through a store (torch's TCPStore) in the first task, at the address where the ranks of Slurm meet (see `world`). Each
task on a server node keeps the addresses of its servers there, under its number. The first rank reads them; where one task has
several ranks, it is another process than the task. The store ends with the first task, and so do the servers.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import torch.distributed as dist

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.distributed import beats, place, world

STORE = "DASH_EXP_SERVER_STORE"  # a variable of the first task and its ranks: the address of the store
SETTING = "rollout.sampler.server_nodes"
LOOK_S = 0.2  # between two looks into the store
ANSWER_S = 10.0  # for the store to answer a new connection
LEAVE_S = 60.0  # after the end of a cell: for server tasks that have not come yet
LOGS = "Look at the logs of the job's other tasks"


@dataclass(frozen=True)
class Said:
    """What a task on a server node says: the address of each of its servers; why each is not started again, "" for one that
    runs or will; and what keeps the task from starting any.
    """

    urls: Sequence[str] = ()
    gone: Sequence[str] = ()
    wrong: str = ""
    host: str = field(default_factory=socket.gethostname)


# --- the first task ------------------------------------------------------------------------------------------------------


@contextmanager
def opened() -> Iterator[None]:
    """Around a cell in the first task: the store is there, and its address in the environment. At the end the servers end."""
    found = world.slurm()
    host, port = found.main_address, found.main_port
    try:
        store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True)  # ranks meet there too
    except RuntimeError as error:
        wrong = f"the sampling servers cannot be met there ({error_line(error).rstrip('.')})"
        right = "No other program may have this address; MASTER_PORT chooses another port"
        raise UserError(f"{host}:{port}", wrong, right) from error
    os.environ[STORE] = f"{host}:{port}"
    try:
        yield
    finally:
        with suppress(RuntimeError):
            store.set("servers/over", "1")
    until = time.monotonic() + LEAVE_S  # not after an error: the end of this process is heard too
    while store.add("servers/left", 0) < place.server_tasks() and time.monotonic() < until:
        time.sleep(0.05)


# --- a task on a server node ---------------------------------------------------------------------------------------------


class Link:
    """The connection of server task `number` to the first task, in a thread: a store that does not answer blocks that alone.

    `own`: the address of this machine in the network that leads there, "" before the first task is there.
    """

    def __init__(self, number: int) -> None:
        self.own = ""
        self._over = False
        self._answered = self._looked = time.monotonic()  # when the store last answered; when `over` was last asked for
        found = world.slurm()
        self._at = found.main_address, found.main_port
        self._number = number
        self._said: Said | None = None
        self._told: Said | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="first task")
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the cell has ended, or the first task has or is not heard of any more, or it has not come.

        Where the link to its machine is cut, nothing ends the connection: the store does not answer. Ask often.
        """
        now = time.monotonic()
        if now - self._looked > beats.LATE_S:
            self._answered = now  # this process was stopped itself
        self._looked = now
        return self._over or (self.own != "" and now - self._answered > beats.SILENCE_S)

    def say(self, said: Said) -> None:
        """Let the first rank know."""
        self._said = said

    def end(self) -> None:
        """After this it says nothing any more."""
        self._ended.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            if (store := self._reached()) is None:
                return
            while not (store.check(["servers/over"]) or self._ended.wait(LOOK_S)):
                self._answered = time.monotonic()
                if (said := self._said) is not None and said != self._told:
                    store.set(f"servers/{self._number}", json.dumps(asdict(said)))
                    self._told = said
            store.add("servers/left", 1)
        except RuntimeError:  # the first task has gone
            pass
        finally:
            self._over = True

    def _reached(self) -> dist.TCPStore | None:
        """The store, as soon as it is there; None where it does not come."""
        until = time.monotonic() + beats.START_S
        while time.monotonic() < until and not self._ended.wait(LOOK_S):
            with suppress(OSError, RuntimeError):  # nobody is there yet, or another program
                with socket.create_connection(self._at, timeout=ANSWER_S) as probe:
                    own = str(probe.getsockname()[0])
                store = _connected(*self._at)
                self._answered, self.own = time.monotonic(), own
                return store
        return None


# --- the first rank ------------------------------------------------------------------------------------------------------


def addresses() -> Callable[[], list[str]]:
    """A function that gives the address of each server now: a server that was started again may have another one.

    Waits until every task on a server node has said where its servers are, not until these answer. Raises UserError where one
    does not, or cannot start servers; the function where no server is left.
    """
    host, _, port = os.environ[STORE].rpartition(":")
    store, tasks = _connected(host, int(port)), range(place.server_tasks())
    until = time.monotonic() + beats.START_S
    while late := [task for task in tasks if not store.check([f"servers/{task}"])]:
        if time.monotonic() > until:
            wrong = f"{len(late)} of {len(tasks)} tasks did not say within {beats.START_S:.0f} s where their servers are"
            raise UserError(f"{SETTING}={place.server_nodes()}", wrong, LOGS)
        time.sleep(LOOK_S)

    def now() -> list[str]:
        said = [Said(**json.loads(store.get(f"servers/{task}"))) for task in tasks]
        if wrong := next((s for s in said if s.wrong), None):
            raise UserError(f"{SETTING}={place.server_nodes()}", f"{wrong.host}: {wrong.wrong}", LOGS)
        gone = [why for s in said for why in s.gone]
        if all(gone):
            wrong_ = f"no sampling server is left ({gone[-1] if gone else 'none was started'})"
            raise UserError(f"{SETTING}={place.server_nodes()}", wrong_, LOGS)
        return [url for s in said for url in s.urls]

    return now


def _connected(host: str, port: int) -> dist.TCPStore:
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_S))
