"""Two ranks come to the numbers of one, whatever each of them has to do; and end together."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pandas as pd
import processes
import pytest
import runs
import torch
import worlds
from conftest import LETTERS, TRAIN, composed, environment

from dash_exp.commands import ending, run
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.distributed import beats, world
from dash_exp.results import run_folder
from dash_exp.training import snapshot_file
from dash_exp.training.module import PolicyModule

COMMON = [*LETTERS, "steps=2", "eval.every=2", "eval.n=2", "eval.k=[2]"]
COMMON += ["data.tests.in_dist.size=6", "data.tests.out_dist.size=2"]
SOME_SETTINGS = {
    "dash": "algo=dash",
    "coupled": "algo=grpo batch.sample_prompts=3",
    "minibatches": "algo=ppo_mini batch.minibatches=3 batch.epochs=2 batch.micro_tokens=100",
    "kl in the reward": "algo=no_gf kl.place=reward filter=quantile",
    "refilled": "algo=dapo filter=zero_variance filter.refill_rounds=2 batch.group_size=2",
    "one kept": "filter=quantile filter.drop=0.97",
    "none kept": "reward.pattern='never'",
    "written traces": "algo=sft_h",
    "adapter": "model.adapter=lora model.lora.lr=0.01",
    "adapter at servers": "model.adapter=lora model.lora.lr=0.01 rollout.sampler._target_=rank_parts.AdapterSampler",
    "sampled ahead": "rollout.sampler._target_=rank_parts.CopySampler rollout.staleness=1",
    "skipped": "select=greso data.limit=12 batch.group_size=2",
    "screened": "select=screen algo=no_gf kl.place=reward",
    "screened by the first": "select=screen rollout.sampler._target_=rank_parts.CopySampler rollout.staleness=1",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one rank with these settings."""
    folders = {}

    def made(settings):
        if settings not in folders:
            folders[settings] = tmp_path_factory.mktemp("alone") / "run"
            run.run(composed(*COMMON, *settings.split()), folders[settings])
        return folders[settings]

    return made


@pytest.mark.parametrize(
    ("strategy", "arm"),
    [("ddp", arm) for arm in SOME_SETTINGS]
    + [
        ("fsdp", arm)
        for arm in (
            "minibatches",
            "kl in the reward",
            "one kept",
            "none kept",
            "sampled ahead",
            "screened",
            "adapter",
            "adapter at servers",
        )
    ],
)
def test_two_ranks_come_to_the_numbers_of_one(strategy, arm, tmp_path, alone):
    settings = SOME_SETTINGS[arm]
    with worlds.two_ranks():
        run.run(composed(*COMMON, *settings.split(), f"trainer={strategy}"), tmp_path)
    runs.alike(tmp_path, alone(settings))
    if "select" in settings:
        metrics = runs.record(tmp_path)[0]
        assert metrics[["select/skipped_prompts", "select/screened_out_prompts"]].sum().sum() > 0


def test_where_memory_runs_out_on_one_rank_all_go_on_with_smaller_passes(tmp_path, alone):
    with worlds.two_ranks():
        run.run(composed(*COMMON, "trainer=ddp", "algo.loss._target_=rank_parts.hungry"), tmp_path)
    metrics, others = runs.record(tmp_path)[0], runs.record(alone(SOME_SETTINGS["dash"]))[0]
    assert others["batch/micro_tokens"].tolist()[1:] == [2048, 2048]
    assert metrics["batch/micro_tokens"][1] < 128  # of both: the row is the first rank's
    del metrics["batch/micro_tokens"], others["batch/micro_tokens"]
    pd.testing.assert_frame_equal(metrics, others, rtol=1e-3, atol=1e-4)


def test_a_rank_that_breaks_ends_the_run_by_name(tmp_path):
    """Under fsdp memory that runs out breaks a pass that all ranks make together."""
    said = r"^rank 1 of 2 on \S+: ended \(outer step 1: memory ran out in a backward pass of \d+ tokens"
    with worlds.two_ranks() as other:
        with pytest.raises(UserError, match=said):
            run.run(composed(*COMMON, "trainer=fsdp", "algo.loss._target_=rank_parts.hungry"), tmp_path)
        other.join(20)
        assert other.exitcode == 0  # otherwise torchrun would end the first while it reports
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed"
    assert "rank 1 of 2" in result["error"]


def test_a_rank_that_goes_away_in_the_end_of_the_run_is_not_missed(tmp_path, monkeypatch):
    """The first alone writes the picture and what trackers get, which may take minutes."""
    left, plot = [], ending.plot_curves
    monkeypatch.setattr(world, "GRACE_S", 0.0)
    monkeypatch.setattr(beats, "SURE_S", 0.1)
    monkeypatch.setattr(os, "_exit", left.append)

    def plotted(*arguments):
        other.kill()
        here = world.entered()
        here.silence_s = 2.0
        processes.wait_until(here.lost, 30)
        time.sleep(2)  # for the thread that watches to see it too
        plot(*arguments)

    monkeypatch.setattr(ending, "plot_curves", plotted)
    with worlds.two_ranks() as other:
        assert run.run(composed(*COMMON, "trainer=ddp"), tmp_path)["status"] == "done"
    assert not left
    assert run_folder.read_result(tmp_path)["status"] == "done"


def killing(rank, folder):
    """Kills a rank of the run in this folder after two steps, and notes when."""
    when = []

    def kill():
        processes.wait_until((folder / "completions" / "step_00002.jsonl").exists, 300)
        os.kill(worlds.pid_of(rank, str(folder)), signal.SIGKILL)
        when.append(time.monotonic())

    threading.Thread(target=kill, daemon=True).start()
    return when


def test_where_the_first_rank_is_killed_the_others_do_not_wait_for_it_long(tmp_path):
    when = killing(0, tmp_path)
    with pytest.raises(UserError, match=r"^rank 0 of 2: was killed .* resumes after outer step"):
        run.run(composed(*COMMON, "trainer=ddp", "steps=50", "eval.every=50"), tmp_path)
    assert time.monotonic() - when[0] < 20  # torch's launcher gives them 30 s


def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on_with_one_or_two(tmp_path, capfd):
    """With processes as torch's launcher starts them."""
    settings = [*COMMON, "algo=ppo_mini", "batch.minibatches=2", "steps=4", "eval.every=4"]
    folder = tmp_path / "killed"

    killing(1, folder)
    with pytest.raises(UserError, match=r"^rank 1 of 2: was killed .* resumes after outer step [123] in "):
        run.run(composed(*settings, "trainer=ddp"), folder)
    assert "Traceback" not in capfd.readouterr().err
    assert "rank 1 of 2: was killed" in json.loads((folder / "result.json").read_text())["error"]
    run.run(composed(*settings), tmp_path / "alone")
    for strategy, devices in (("auto", 1), ("ddp", 2)):
        shutil.copytree(folder, tmp_path / strategy)
        with worlds.two_ranks() if devices == 2 else nullcontext():
            run.run(composed(*settings, f"trainer.strategy={strategy}", f"trainer.devices={devices}"), tmp_path / strategy)
        runs.alike(tmp_path / strategy, tmp_path / "alone")
        assert capfd.readouterr().out.count("resumes after outer step") == 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, process.RESUME_ME), (signal.SIGINT, process.INTERRUPTED), (signal.SIGKILL, None)]
)
def test_a_signal_to_the_command_ends_all_its_ranks(number, status, tmp_path):
    settings = [*COMMON, "trainer=ddp", "steps=50", "eval.every=50", "resume_every=1", f"hydra.run.dir={tmp_path}/run"]
    mark, said = f"RANKS_OF={tmp_path}", tmp_path / "said"
    variables = environment(tmp_path) | dict([mark.split("=")])
    with said.open("w") as out:
        command = subprocess.Popen([sys.executable, TRAIN, *settings], env=variables, stdout=out, stderr=out, cwd=tmp_path)
    try:
        processes.wait_until((tmp_path / "run" / "completions" / "step_00002.jsonl").exists, 300, said.read_text)
        for _ in range(2 if number == signal.SIGINT else 1):  # another Ctrl-C does not break the first one's saving
            command.send_signal(number)
            time.sleep(0.1)
        assert command.wait(60) == (status or -number), said.read_text()
    finally:
        command.kill()
    processes.wait_until_gone(mark, 10)
    if status:
        assert "stopped: the same command resumes after outer step" in said.read_text()
        assert "Traceback" not in said.read_text()
        assert "lightning/pytorch" not in said.read_text()  # its warnings are silent in the ranks too
        assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "stopped"
        assert run_folder.snapshots(tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "after"),
    [("fsdp", "cpu"), ("fsdp", "fsdp"), ("cpu", "fsdp"), ("fsdp apart", "fsdp apart"), ("fsdp", "fsdp apart")],
)
def test_a_sharded_run_that_is_told_to_leave_goes_on_elsewhere(before, after, tmp_path, monkeypatch, alone, caplog):
    """And one that was not goes on as one that is: either form of a snapshot is read by all. Apart: on two disks."""
    caplog.set_level(logging.INFO, "dash_exp.training.snapshot")
    settings = SOME_SETTINGS["minibatches"].split()
    folder = tmp_path / "left"
    finish_row = PolicyModule.finish_row

    def leaves(module):
        if module.current_epoch == 1:
            raise SystemExit(process.RESUME_ME)
        return finish_row(module)

    def ranks(trainer):
        work = worlds.follows_apart if "apart" in trainer else run.follow
        return worlds.two_ranks(work) if "fsdp" in trainer else nullcontext()

    with ranks(before), monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(PolicyModule, "finish_row", leaves)
        run.run(composed(*COMMON, *settings, f"trainer={before.split()[0]}"), folder)
    assert left.value.code == process.RESUME_ME
    (kept,) = run_folder.snapshots(folder)
    parts = [file.name[:11] for file in kept.glob("part-*")]
    assert sorted(parts) == (["part-0-of-2", "part-1-of-2"] if before == "fsdp" else [])
    with ranks(after):
        run.run(composed(*COMMON, *settings, f"trainer={after.split()[0]}"), folder)
    assert caplog.text.count("the first gathers the weights of the others") == [before, after].count("fsdp apart")
    runs.alike(folder, alone(SOME_SETTINGS["minibatches"]))


DROPOUT = "model.adapter=lora model.lora.lr=0.01 model.lora.dropout=0.5"


@pytest.mark.parametrize(
    ("trainer", "overrides", "torn"),
    [("ddp", DROPOUT, False), ("fsdp", DROPOUT, False), ("fsdp", SOME_SETTINGS["sampled ahead"] + " kl.coef=0.04", True)],
    ids=["ddp, adapter", "fsdp, adapter", "fsdp, sampled ahead, a part is torn"],
)
def test_a_run_of_two_ranks_goes_on_as_if_nothing_had_been(trainer, overrides, torn, tmp_path, monkeypatch, capsys, caplog):
    """Of the adapter dropout too: each rank draws its own, and goes on where it was. The second follows the first through all
    three runs. Where its part of the last snapshot is torn, both go on from the one before.
    """
    every = "resume_every=1" if torn else "resume_every=2"
    cfg = composed(*COMMON, *overrides.split(), f"trainer={trainer}", "steps=4", "eval.every=4", every)
    with worlds.two_ranks():
        run.run(cfg, tmp_path / "alone")
        runs.broken_after(tmp_path / "broken", cfg, 3, monkeypatch)
        last, *_ = kept = run_folder.snapshots(tmp_path / "broken")
        if torn:
            (part,) = last.glob("part-1-of-2-*.pt")
            part.write_bytes(part.read_bytes()[:-100])
        else:
            assert len(kept) == 1
            first, second = (state["torch"] for state in snapshot_file.read(last)["random"])
            assert not torch.equal(first, second)
        run.run(cfg, tmp_path / "broken")
    assert "resumes after outer step 2" in capsys.readouterr().out
    assert (f"{last} is damaged (part-1-of-2" in caplog.text) == torn
    runs.same(tmp_path / "broken", tmp_path / "alone")
    assert runs.record(tmp_path / "broken")[2] == runs.record(tmp_path / "alone")[2]  # every completion


def test_more_gpus_than_there_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^trainer\.devices=3: torch finds 2 GPU\(s\) on this machine"):
        run.run(composed(*COMMON, "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=3"), tmp_path)
