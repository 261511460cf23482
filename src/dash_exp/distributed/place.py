"""How many processes torchrun or srun has started together for this command, and which of them this one is.

Read from the variables that Lightning's environments read too, but without torch, which a command loads late.
"""

from __future__ import annotations

import os

from dash_exp.core.errors import UserError


def size() -> int:
    """1 for a process that was started alone."""
    if starter() == "torchrun":
        return int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") and os.isatty(0):
        return 1  # typed in the shell of `srun -n2 --pty bash`; tasks that srun starts from a shell inherit its job's name
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # only srun sets it, so not in the script of sbatch itself


def index() -> int:
    """0 for the first, which does what the command says; the others follow it."""
    return int(os.environ["RANK" if starter() == "torchrun" else "SLURM_PROCID"]) if size() > 1 else 0


def machines() -> int:
    """On how many machines the processes are."""
    if starter() == "torchrun":
        return size() // int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    return int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) if size() > 1 else 1


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
