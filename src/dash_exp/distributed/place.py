"""How many processes torchrun or srun has started together for this command, and which of them this one is.

Read from the variables that Lightning's environments read too, but without torch, which a command loads late. The last nodes of
a Slurm job may have sampling servers and no ranks (SERVER_NODES): their tasks are not counted here.
"""

from __future__ import annotations

import os

from dash_exp.core.errors import UserError

SERVER_NODES = "DASH_EXP_SERVER_NODES"  # a variable that the launcher sets: on how many of the last nodes servers sample


def size() -> int:
    """1 for a process that was started alone."""
    if starter() == "torchrun":
        return int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") and os.isatty(0):
        return 1  # typed in the shell of `srun -n2 --pty bash`; tasks that srun starts from a shell inherit its job's name
    # only srun sets it, so not in the script of sbatch itself
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) - server_tasks()


def index() -> int:
    """0 for the first, which does what the command says; the others follow it."""
    if size() == 1:
        return 0
    if server_nodes() and starter() == "srun":  # Slurm may have dealt the tasks out to all nodes in turn
        return int(os.environ["SLURM_NODEID"]) * tasks_of_a_node() + int(os.environ["SLURM_LOCALID"])
    return int(os.environ["RANK" if starter() == "torchrun" else "SLURM_PROCID"])


def machines() -> int:
    """On how many machines the processes are."""
    if starter() == "torchrun":
        return size() // int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    return int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) - server_nodes() if size() > 1 else 1


def server_nodes() -> int:
    """How many of the last nodes of this Slurm job have sampling servers."""
    return int(os.environ.get(SERVER_NODES, 0))


def tasks_of_a_node() -> int:
    """Slurm's tasks on each node of a job with server nodes."""
    return int(os.environ["SLURM_STEP_NUM_TASKS"]) // int(os.environ["SLURM_STEP_NUM_NODES"])


def server_tasks() -> int:
    """How many tasks there are on server nodes."""
    return server_nodes() * tasks_of_a_node() if server_nodes() else 0


def server_task() -> int | None:
    """The number of this task among those on server nodes; None for one that trains."""
    first = int(os.environ["SLURM_STEP_NUM_NODES"]) - server_nodes() if server_nodes() else None
    if first is None or int(os.environ["SLURM_NODEID"]) < first:
        return None
    return (int(os.environ["SLURM_NODEID"]) - first) * tasks_of_a_node() + int(os.environ["SLURM_LOCALID"])


def start() -> str:
    """Which start of the processes this is, where others may have met, or meet, at the same address: steps of one job too."""
    if starter() == "torchrun":
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return ".".join(os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in os.environ) or "0"


def starter() -> str:
    """What has started the processes, where anything has."""
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "srun"


def check(devices: int, num_nodes: int) -> None:
    """Raise UserError where so many ranks on each of so many machines are not what was started."""
    where = f"trainer.devices={devices} trainer.num_nodes={num_nodes}"
    if size() > 1 and devices * num_nodes != size():
        wrong = f"make {devices * num_nodes} rank(s), but {starter()} has started {size()}"
        raise UserError(where, wrong, "Write what it starts")
    if size() == 1 and num_nodes > 1:
        raise UserError(
            where,
            "needs a process for each rank on each machine, and this is one process alone",
            "Start it with torchrun or srun, or give it as a cell to hydra/launcher=submitit_slurm (docs: several devices)",
        )
