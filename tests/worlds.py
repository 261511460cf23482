"""Two ranks of one command for a test: the first is the test's process, the other is forked beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import torch
from omegaconf import DictConfig
from slurm import free_port

from dash_exp.commands import rank, run
from dash_exp.distributed import beats
from dash_exp.distributed.ranks import Ranks

beats.START_S = 120.0  # a test need not wait longer for a process that does not come


@contextmanager
def two_ranks(work: Callable[..., object] = run.follow) -> Iterator[BaseProcess]:
    """Around what the first does, with the variables that torchrun would give it. Gives the process of the other one."""
    both = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    before = dict(os.environ)
    threads = torch.get_num_threads()
    other = forked.process(_other, both | {"RANK": "1", "LOCAL_RANK": "1"}, work, daemon=True)
    torch.set_num_threads(1)
    os.environ.update(both | {"RANK": "0", "LOCAL_RANK": "0"})
    try:
        with rank.taking_part(work):
            yield other
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)
        other.join(20)
        other.kill()


def _other(variables: Mapping[str, str], work: Callable[..., object]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    with rank.taking_part(work):
        raise AssertionError("it follows, and does not come back")


def pid_of(rank: int, mark: str) -> int:
    """The process of a rank that a launcher has started with this in its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = f"\0RANK={rank}\0".encode() in b"\0" + (folder / "environ").read_bytes()
            if is_rank and mark.encode() in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no rank {rank} of {mark}")


def follows_apart(cfg: DictConfig, folder: Path, group: Ranks) -> None:
    """The other rank follows on a machine that does not see the folder of the run."""
    run.follow(cfg, folder / "not" / "here", group)


def gives_back(cfg: object, folder: Path, group: Ranks) -> None:
    """The other rank gathers what the first has sent it."""
    group.join()
    group.gather(group.tensors_from_first(None))
