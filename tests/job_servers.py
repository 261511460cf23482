"""A Slurm job whose last node samples, without Slurm: the variables of its tasks, and tasks with stand-ins for servers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

import worlds

from dash_exp.commands import rank
from dash_exp.commands.sweep import server_task
from dash_exp.commands.sweep.server_nodes import ServerNodes
from dash_exp.distributed import server_store

ASKED = ServerNodes(nodes=1, gpus_per_server=1, gpus=False, settings="seed: 7\n")
# Listens, and ends with the task that started it: in place of a server.
STAND_IN = """
import ctypes, os, signal, socket, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
assert sys.stdin.read() == "seed: 7\\n"
listener = socket.create_server((sys.argv[2], int(sys.argv[3])))
print("stand-in", os.getpid(), flush=True)
while True: signal.pause()
"""


def variables(port: int, nodes: int, tasks: int, task: int) -> dict[str, str]:
    """Of a task of a job with so many tasks on each node, the last of which samples."""
    found = {"SLURM_STEP_NUM_TASKS": nodes * tasks, "SLURM_STEP_NUM_NODES": nodes, "SLURM_NTASKS": nodes * tasks}
    found |= {
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_PROCID": task,
        "SLURM_NODEID": task // tasks,
        "SLURM_LOCALID": task % tasks,
    }
    found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DASH_EXP_SERVER_NODES": 1, "SLURM_JOB_ID": 77}
    return {name: str(value) for name, value in found.items()}


def stand_in(server: server_task.Server) -> list[str]:
    """In place of `server_task.command`."""
    return [sys.executable, "-S", "-E", "-c", STAND_IN, str(os.getpid()), server.host, str(server.port)]


def first_task(given: Mapping[str, str]) -> None:
    """The first task of a job, whose cell does not end."""
    os.environ.update(given)
    with server_store.opened():
        time.sleep(1000)


def second_rank(given: Mapping[str, str]) -> None:
    """The task of another node that trains: it gives back what the first rank sends."""
    os.environ.update(given)
    with server_task.of_first(ASKED), rank.taking_part(worlds.gives_back):
        raise AssertionError("it follows, and does not come back")


def serving_task(given: Mapping[str, str], pauses_s: tuple[float, ...]) -> None:
    """A task on the node that samples."""
    os.environ.update(given)
    server_task.command = stand_in
    server_task.PAUSES_S = pauses_s
    server_task.serve_where_asked(ASKED)
    raise AssertionError("it does not come back")
