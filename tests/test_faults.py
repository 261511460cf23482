"""Runs that are killed at random moments go on as if nothing had been.

Each run here is killed several times over, by SIGKILL, which no program can prepare for: some times after a random while, and
some at a random one of its dealings with files, which are where something could be left half done. The processes are forked
from one that has everything imported, so a start costs little.
"""

import importlib.util
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pandas.testing
import pytest
from conftest import NANO_MODEL, SMALL, composed, needs_vllm

from dash_exp import results
from dash_exp.sampler import engine

KILLS = 5  # of one run
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
STEPS = 8
# A policy of random weights that writes some letters, half of which are rewarded: there is something to learn in no time.
COMMON = [*SMALL, "model=tiny_random", *NANO_MODEL, "+model.architecture.initializer_range=0.3", "batch.prompts=4"]
COMMON += [f"steps={STEPS}", "rollout.max_response_tokens=8", "reward=format", "reward.pattern='[^a-m]*'"]
COMMON += ["eval.every=4", "eval.n=2", "eval.k=[2]"]


def killed_or_done(overrides: Sequence[str], folder: Path, training: bool, after_s: float | None, at_event: int | None) -> None:
    """In a process of its own: the run, until it is done or the moment has come.

    The moment is counted from when the process starts or, with `training`, from its first outer step. `folder.spent` gets the
    seconds of training, and how often it dealt with files before it and in it.
    """
    from dash_exp import run

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
    folder.with_suffix(".spent").write_text(f"{time.perf_counter() - began[0]} {events[False]} {events[True]}")


class Runs:
    """Starts runs in processes that are forked from one with the imports behind it."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        preload = ["dash_exp.run"]
        if importlib.util.find_spec("vllm"):
            os.environ.update({k: v for k, v in engine.ENVIRONMENT.items() if k not in os.environ})
            preload += ["vllm", "vllm.distributed", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"]
        self.context.set_forkserver_preload(preload)

    def __call__(self, overrides: Sequence[str], folder: Path, training: bool = True, **moment: float) -> int | None:
        """The exit status."""
        arguments = (overrides, folder, training, moment.get("after_s"), moment.get("at_event"))
        process = self.context.Process(target=killed_or_done, args=arguments)
        process.start()
        process.join()
        return process.exitcode


def same(folder: Path, other: Path) -> None:
    """Metrics, problems, result and every completion, times aside."""
    a, b = results.load_cell(folder), results.load_cell(other)
    assert a.status == b.status == "done"
    assert a.metrics["step"].tolist() == list(range(STEPS + 1))  # each row once
    columns = [c for c in b.metrics if not c.startswith("time/") and c != "seconds"]
    pandas.testing.assert_frame_equal(a.metrics[columns], b.metrics[columns], check_exact=True)
    pandas.testing.assert_frame_equal(a.problems, b.problems)
    assert {k: v for k, v in a.result.items() if "time/" not in k} == {k: v for k, v in b.result.items() if "time/" not in k}
    files = [sorted((f / "completions").iterdir()) for f in (folder, other)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert not (folder / results.SNAPSHOTS).exists()
    assert not list(folder.rglob("*.new")) + list(folder.rglob("*.old"))


def killed_and_killed_again(runs: Runs, overrides: Sequence[str], folder: Path, seed: int) -> None:
    """A run left alone, and one that is killed `KILLS` times, first in its set-up and then in training; both end the same."""
    assert runs(overrides, folder / "alone") == 0
    seconds, before, events = map(float, (folder / "alone.spent").read_text().split())
    rng = random.Random(seed)
    killed, kills, gone_on = folder / "killed", 0, 0
    while kills < KILLS:
        gone_on += bool(results.snapshots(killed))
        moment = rng.random() * 2.5 / STEPS  # within the next steps, so that there is something left for the other kills
        if kills == 0:
            status = runs(overrides, killed, training=False, at_event=1 + int(rng.random() * before))
        elif kills % 2:
            status = runs(overrides, killed, at_event=1 + int(moment * events))
        else:
            status = runs(overrides, killed, after_s=moment * seconds)
        if status == 0:  # it came to its end before
            same(killed, folder / "alone")
            shutil.rmtree(killed)
        else:
            assert status == -signal.SIGKILL
            kills += 1
    gone_on += bool(results.snapshots(killed))
    assert runs(overrides, killed) == 0
    same(killed, folder / "alone")
    assert gone_on >= 2  # kills were where they could do harm


ARMS = {
    "dash": ["algo=dash", "kl=adaptive"],
    "grpo": ["algo=grpo", "+model.architecture.attention_dropout=0.2"],  # which draws from torch's generator
    "ppo_mini": ["algo=ppo_mini", "batch.minibatches=4"],
    "refills": ["algo=no_gf", "filter=zero_variance", "kl.place=reward"],
}
VLLM = ["rollout=vllm", "rollout.sampler.cpu_cache_gb=0.1"]
STALE = {
    "fresh": [],
    "stale": ["rollout.staleness=1"],
    "every 2": ["rollout.refresh_every=2"],
    "never": ["rollout.refresh_every=null"],
}


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_run_that_is_killed_again_and_again_is_the_run_left_alone(arm, tmp_path):
    killed_and_killed_again(Runs(), [*COMMON, *ARMS[arm]], tmp_path, seed=len(arm))


@needs_vllm
@pytest.mark.parametrize("stale", list(STALE))
def test_so_with_vllm(stale, tmp_path):
    killed_and_killed_again(Runs(), [*COMMON, *VLLM, *STALE[stale]], tmp_path, seed=len(stale))
