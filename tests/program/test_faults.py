"""Runs that are killed at random moments go on as if nothing had been.

Each run here is killed several times over, by SIGKILL, which no program can prepare for: some times after a random while, and
some at a random one of its dealings with files, which are where something could be left half done. The processes are forked
from one that has everything imported, so a start costs little.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import forked
import pandas.testing
import pytest
from conftest import LETTERS, composed, needs_vllm

from dash_exp.results import cells, run_folder

KILLS = 5  # of one run
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
STEPS = 8
COMMON = [*LETTERS, "batch.prompts=4", f"steps={STEPS}"]
COMMON += ["eval.every=4", "eval.n=2", "eval.k=[2]"]


def killed_or_done(overrides: Sequence[str], folder: Path, training: bool, after_s: float | None, at_event: int | None) -> None:
    """In a process of its own: the run, until it is done or the moment has come.

    The moment is counted from when the process starts or, with `training`, from its first outer step. `folder.spent` gets the
    seconds of training, and how often it dealt with files before it and in it.
    """
    from dash_exp.commands import run

    events = {False: 0, True: 0}  # before training and in it
    began: list[float] = []

    def wait_and_kill(seconds: float) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(str(folder)):
            return
        if not began and "completions/step_" in str(arguments[0]) and "new" in str(arguments[0]):  # the end of the first step
            began.append(time.perf_counter())
            if after_s is not None:
                threading.Thread(target=wait_and_kill, args=[after_s], daemon=True).start()
        events[bool(began)] += 1
        if bool(began) == training and events[training] == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    cfg = composed(*overrides)
    sys.addaudithook(hook)
    run.run(cfg, folder)
    if began:  # otherwise it was killed in its end, and there was nothing left to train
        folder.with_suffix(".spent").write_text(f"{time.perf_counter() - began[0]} {events[False]} {events[True]}")


def ended(overrides: Sequence[str], folder: Path, training: bool = True, **moment: float) -> int | None:
    """The exit status of a run that is killed at that moment."""
    arguments = (overrides, folder, training, moment.get("after_s"), moment.get("at_event"))
    process = forked.process(killed_or_done, *arguments)
    process.join()
    return process.exitcode


def same(folder: Path, other: Path) -> None:
    """Metrics, problems, result and every completion, times aside."""
    a, b = cells.load_cell(folder), cells.load_cell(other)
    assert a.status == b.status == "done"
    assert a.metrics["step"].tolist() == list(range(STEPS + 1))  # each row once
    columns = [c for c in b.metrics if not c.startswith("time/") and c != "seconds"]
    pandas.testing.assert_frame_equal(a.metrics[columns], b.metrics[columns], check_exact=True)
    pandas.testing.assert_frame_equal(a.problems, b.problems)
    assert {k: v for k, v in a.result.items() if "time/" not in k} == {k: v for k, v in b.result.items() if "time/" not in k}
    files = [sorted((f / "completions").iterdir()) for f in (folder, other)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert not (folder / run_folder.SNAPSHOTS).exists()
    assert not list(folder.rglob("*.new")) + list(folder.rglob("*.old"))


def killed_and_killed_again(overrides: Sequence[str], folder: Path, seed: int) -> None:
    """A run left alone, and one that is killed `KILLS` times, first in its set-up and then in training; both end the same."""
    assert ended(overrides, folder / "alone") == 0
    seconds, before, events = map(float, (folder / "alone.spent").read_text().split())
    rng = random.Random(seed)
    killed, kills, gone_on = folder / "killed", 0, 0
    while kills < KILLS:
        gone_on += bool(run_folder.snapshots(killed))
        moment = rng.random() * 2.5 / STEPS  # within the next steps, so that there is something left for the other kills
        if kills == 0:
            status = ended(overrides, killed, training=False, at_event=1 + int(rng.random() * before))
        elif kills % 2:
            status = ended(overrides, killed, at_event=1 + int((1 / STEPS + moment) * events))  # after a snapshot
        else:
            status = ended(overrides, killed, after_s=moment * seconds)
        if status == 0:  # it came to its end before
            same(killed, folder / "alone")
            shutil.rmtree(killed)
        else:
            assert status == -signal.SIGKILL
            kills += 1
    gone_on += bool(run_folder.snapshots(killed))
    assert ended(overrides, killed) == 0
    same(killed, folder / "alone")
    assert gone_on >= 2  # kills were where they could do harm


COPY = ["rollout.sampler._target_=rank_parts.CopySampler"]  # with weights of its own, as vLLM has them
ARMS = {
    "dash": ["algo=dash", "kl=adaptive"],
    "grpo": ["algo=grpo", "+model.architecture.attention_dropout=0.2"],  # which draws from torch's generator
    "ppo_mini": ["algo=ppo_mini", "batch.minibatches=4"],
    "refills": ["algo=no_gf", "filter=zero_variance", "kl.place=reward"],
    "every 2": [*COPY, "rollout.refresh_every=2"],
    "never": [*COPY, "rollout.refresh_every=null"],
}
VLLM = ["rollout=vllm", "rollout.sampler.cpu_cache_gb=0.1"]
STALE = {"fresh": [], "stale": ["rollout.staleness=1"]}


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_run_that_is_killed_again_and_again_is_the_run_left_alone(arm, tmp_path):
    killed_and_killed_again([*COMMON, *ARMS[arm]], tmp_path, seed=len(arm))


@needs_vllm
@pytest.mark.parametrize("stale", list(STALE))
def test_so_with_vllm(stale, tmp_path):
    killed_and_killed_again([*COMMON, *VLLM, *STALE[stale]], tmp_path, seed=len(stale))
