"""What the tasks of a cell's Slurm job do where its last nodes sample: the first opens the store, those nodes start servers.

A server that ends is started again, with a growing pause, and at another port where its own has been taken. All end with the
cell, whatever ended that, and with this task.

As a module it is one server: python -m dash_exp.commands.sweep.server_task PARENT HOST PORT GPUS < SETTINGS
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.sweep.server_nodes import GPUS, ServerNodes
from dash_exp.core import process
from dash_exp.core.addresses import free_port, is_free
from dash_exp.core.errors import UserError
from dash_exp.distributed import place

PAUSES_S = (1.0, 4.0, 16.0, 60.0, 60.0)  # before each new start of a server that has ended: after the last it stays so
LIVED_S = 600.0  # after so long an end is the first one again
GRACE_S = 5.0  # for servers to end by themselves
LOOK_S = 0.2


def serve_where_asked(asked: ServerNodes) -> None:
    """At the start of each task of a cell with server nodes. One on such a node serves here until its end: status 0."""
    os.environ[place.SERVER_NODES] = str(asked.nodes)
    if place.server_task() is not None:
        serve_cell(asked)
        sys.stdout.flush()
        os._exit(0)  # a thread may wait for a store that has gone


@contextmanager
def of_first(asked: ServerNodes | None) -> Iterator[None]:
    """Around a cell in a task that trains: in the first one, which has the store, the servers end with it."""
    if asked is None or place.index() > 0:
        yield
        return
    with process.importing():
        from dash_exp.distributed import server_store
    with server_store.opened():
        yield


def serve_cell(asked: ServerNodes) -> None:
    """Have servers until the cell ends, or SIGTERM."""
    stopped: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: stopped.append(number))
    # Slurm sends it to all processes before the time limit: the first task saves, and the job goes back into the queue.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with process.importing():
        from dash_exp.distributed.server_store import Link, Said
    number = place.server_task()
    assert number is not None
    link = Link(number)
    servers: list[Server] = []
    wrong = ""
    try:
        while not (stopped or link.over or link.own):
            time.sleep(LOOK_S)
        try:
            gpus = gpus_of_servers(asked, number % place.tasks_of_a_node()) if link.own else []
            servers = [Server(link.own, of_one, asked) for of_one in gpus]
        except UserError as error:
            wrong = f"{error.where}: {error.wrong}"
        while not (stopped or link.over):
            for server in servers:
                server.look_after(apart_from={other.port for other in servers})
            link.say(Said(urls=[server.url for server in servers], gone=[server.gone for server in servers], wrong=wrong))
            time.sleep(LOOK_S)
    finally:
        end(servers)
        link.end()


def gpus_of_servers(asked: ServerNodes, local: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each server of task `local` of this node: the tasks share the node's servers out.

    UserError where the node has other GPUs than the job has asked for.
    """
    if not asked.gpus:
        return [""] if local == 0 else []
    there, each = visible_gpus(), asked.gpus_per_server
    if not there or len(there) % each:
        raise UserError(f"{GPUS}={each}", f"this node has {len(there)} GPU(s)", "Write a number that divides it")
    return [",".join(there[i : i + each]) for i in range(0, len(there), each)][local :: place.tasks_of_a_node()]


def visible_gpus() -> list[str]:
    """The GPUs that Slurm gave this task; all of the machine where it gives out none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu.strip() not in ("", "NoDevFiles")]
    import torch

    return [str(gpu) for gpu in range(torch.cuda.device_count())]


class Server:
    """One server, on the network of address `host` alone. `gone`: why it is not started again, "" where it runs or will."""

    def __init__(self, host: str, gpus: str, asked: ServerNodes) -> None:
        self.host, self.gpus, self.asked = host, gpus, asked
        self.port = 0
        self.gone = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._ended = 0  # how often in a row
        self._started = self._next = 0.0  # by `time.monotonic`

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def look_after(self, apart_from: set[int]) -> None:
        """Start it where it does not run, and its pause is over. `apart_from`: ports that others will have."""
        if self.process is not None and self.process.poll() is not None:
            self._has_ended(self.process.returncode)
        if self.process is not None or self.gone or time.monotonic() < self._next:
            return
        if not self.port or not is_free(self.host, self.port):
            self.port = free_port(self.host, apart_from)
        self.process = started(self)
        self._started = time.monotonic()

    def _has_ended(self, status: int) -> None:
        self.process = None
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"has ended with status {status}"
        self._ended = 1 if time.monotonic() - self._started > LIVED_S else self._ended + 1
        if self._ended > len(PAUSES_S):
            self.gone = f"{self.url} {how}, {self._ended} times in a row"
            print(f"sampling server {self.gone}: it is not started again", flush=True)
            return
        pause_s = PAUSES_S[self._ended - 1]
        self._next = time.monotonic() + pause_s
        print(f"sampling server {self.url} {how}: it is started again in {pause_s:g} s", flush=True)


def started(server: Server) -> subprocess.Popen[bytes]:
    """The process of a server."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}  # of the ranks
    variables |= {"CUDA_VISIBLE_DEVICES": server.gpus, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    made = subprocess.Popen(command(server), env=variables, stdin=subprocess.PIPE)
    assert made.stdin is not None
    with suppress(BrokenPipeError), made.stdin:  # it has ended already, which is seen later
        made.stdin.write(server.asked.settings.encode())
    return made


def command(server: Server) -> list[str]:
    """The command line of a server."""
    arguments = [os.getpid(), server.host, server.port, server.asked.gpus_per_server]
    return [sys.executable, "-m", "dash_exp.commands.sweep.server_task", *map(str, arguments)]


def end(servers: Sequence[Server]) -> None:
    """End them; those that take long by force. Nothing of them is kept."""
    running = [server.process for server in servers if server.process is not None]
    for each in running:
        each.terminate()
    until = time.monotonic() + GRACE_S
    for each in running:
        try:
            each.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


# --- one server ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Becomes `vllm serve`. The system ends it with the task that started it."""
    from dash_exp.commands import cli, serve

    parent, host, port, gpus = sys.argv[1:]
    process.end_with(int(parent))
    cfg = OmegaConf.create(sys.stdin.read())
    assert isinstance(cfg, DictConfig)
    try:
        serve.start(cfg, serve.Command(int(port), host, [], ["--tensor-parallel-size", gpus]))
    except (UserError, OSError) as error:
        sys.exit(f"error: {cli.explain(error) if isinstance(error, UserError) else error}")


if __name__ == "__main__":
    main()
