"""Two ranks come to the numbers of one, whatever each of them has to do; and end together."""

import json
import multiprocessing.process
import os
import shutil
import threading
import time

import forked
import pandas as pd
import pytest
import runs
import torch
import torch.distributed as dist
from conftest import LETTERS, composed
from omegaconf import OmegaConf

from dash_exp.commands import rank, run
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.distributed import ranks
from dash_exp.results import cells, run_folder
from dash_exp.training import snapshot
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


class Beside:
    """In place of the process that `ranks.start` returns: a job of a process that stays for the next test, or is killed."""

    process: multiprocessing.process.BaseProcess | None = None

    def __init__(self, module, run_dir, index, size, port):
        if Beside.process is None or not Beside.process.is_alive():
            Beside.pipe, end = multiprocessing.Pipe()
            Beside.process = forked.process(jobs, end, daemon=True)
        self.status = None
        self.pipe.send((run_dir, index, size, port))

    def poll(self, within_s=0.0):
        try:
            if self.status is None and self.pipe.poll(within_s):
                self.status = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()  # it is ending: the next test must not take it for alive
        return self.process.exitcode if self.status is None else self.status

    def kill(self):
        if self.poll(within_s=3.0) is None:
            self.process.kill()
            self.process.join()

    def wait(self):
        """Nothing: a job is over, and a killed process is at once."""


def jobs(pipe):
    """One rank after the other."""
    torch.set_num_threads(1)
    while True:
        run_dir, *place = pipe.recv()
        status = rank._follow(run.follow, OmegaConf.load(run_dir / "config.yaml"), run_dir, *place)
        if status:
            os._exit(status)
        dist.destroy_process_group()
        pipe.send(status)


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr(ranks, "start", Beside)


def record(folder):
    """Metrics, result and completions, times aside."""
    cell = cells.load_cell(folder)
    metrics = cell.metrics[[c for c in cell.metrics if not c.startswith("time/") and c != "seconds"]]
    result = {k: v for k, v in cell.result.items() if "time/" not in k and k != "device" and v is not None}
    rows = [json.loads(line) for file in sorted((folder / "completions").iterdir()) for line in file.open()]
    return metrics, result, [row | {"advantage": pytest.approx(row["advantage"], abs=1e-5)} for row in rows]


def same(folder, other):
    """To rounding errors: of sums in another order, and of the policies that were trained with them."""
    (metrics, result, rows), (others_metrics, others_result, others_rows) = record(folder), record(other)
    exact = ["loss/total", "grad/norm", "kl/ref_nats_per_token", "reward/mean", "accuracy/in_dist", "accuracy/out_dist"]
    if metrics["optimizer/steps"][1] == 1:  # all of it with the same policy
        pd.testing.assert_frame_equal(metrics[exact][:2], others_metrics[exact][:2], rtol=2e-6, atol=1e-7)
    pd.testing.assert_frame_equal(metrics, others_metrics, rtol=1e-3, atol=1e-4)
    assert rows == others_rows
    assert result.keys() == others_result.keys()
    for name, value in result.items():
        assert value == (pytest.approx(others_result[name], rel=1e-3) if isinstance(value, float) else others_result[name])
    assert (folder / "problems.csv").read_bytes() == (other / "problems.csv").read_bytes()


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
def test_two_ranks_come_to_the_numbers_of_one(strategy, arm, tmp_path, beside, alone):
    settings = SOME_SETTINGS[arm]
    run.run(composed(*COMMON, *settings.split(), f"trainer={strategy}"), tmp_path)
    same(tmp_path, alone(settings))
    if "select" in settings:
        metrics = record(tmp_path)[0]
        assert metrics[["select/skipped_prompts", "select/screened_out_prompts"]].sum().sum() > 0


def test_where_memory_runs_out_on_one_rank_all_go_on_with_smaller_passes(tmp_path, beside, alone):
    run.run(composed(*COMMON, "trainer=ddp", "algo.loss._target_=rank_parts.hungry"), tmp_path)
    metrics, others = record(tmp_path)[0], record(alone(SOME_SETTINGS["dash"]))[0]
    assert others["batch/micro_tokens"].tolist()[1:] == [2048, 2048]
    assert metrics["batch/micro_tokens"][1] < 128  # of both: the row is the first rank's
    del metrics["batch/micro_tokens"], others["batch/micro_tokens"]
    pd.testing.assert_frame_equal(metrics, others, rtol=1e-3, atol=1e-4)


def test_a_rank_that_breaks_ends_the_run_by_name(tmp_path, beside):
    """Under fsdp memory that runs out breaks a pass that all ranks make together."""
    said = r"^rank 1 of 2: ended with status 1 \(outer step 1: memory ran out in a backward pass of \d+ tokens"
    with pytest.raises(UserError, match=said):
        run.run(composed(*COMMON, "trainer=fsdp", "algo.loss._target_=rank_parts.hungry"), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed"
    assert "rank 1 of 2" in result["error"]


def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on_with_one_or_two(tmp_path, monkeypatch, capfd):
    """With processes as a user's command starts them."""
    settings = [*COMMON, "algo=ppo_mini", "batch.minibatches=2", "steps=4", "eval.every=4"]
    folder = tmp_path / "killed"
    started = []

    def start(*arguments):
        started.append(start_rank(*arguments))
        return started[-1]

    def kill():
        while not (folder / "completions" / "step_00002.jsonl").exists():
            time.sleep(0.01)
        started[0].kill()

    start_rank = ranks.start
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "start", start)
        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(UserError, match=r"^rank 1 of 2: was killed .* resumes after outer step [123] in "):
            run.run(composed(*settings, "trainer=ddp"), folder)
    assert "Traceback" not in capfd.readouterr().err
    run.run(composed(*settings), tmp_path / "alone")
    monkeypatch.setattr(ranks, "start", Beside)
    for strategy, devices in (("auto", 1), ("ddp", 2)):
        shutil.copytree(folder, tmp_path / strategy)
        run.run(composed(*settings, f"trainer.strategy={strategy}", f"trainer.devices={devices}"), tmp_path / strategy)
        same(tmp_path / strategy, tmp_path / "alone")
        assert capfd.readouterr().out.count("resumes after outer step") == 1


def test_a_sharded_run_that_is_told_to_leave_goes_on_elsewhere(tmp_path, beside, monkeypatch, alone):
    settings = SOME_SETTINGS["minibatches"]
    finish_row = PolicyModule.finish_row

    def leaves(module):
        if module.current_epoch == 1:
            raise SystemExit(process.RESUME_ME)
        return finish_row(module)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(PolicyModule, "finish_row", leaves)
        run.run(composed(*COMMON, *settings.split(), "trainer=fsdp"), tmp_path)
    assert left.value.code == process.RESUME_ME
    assert len(run_folder.snapshots(tmp_path)) == 1
    run.run(composed(*COMMON, *settings.split()), tmp_path)
    same(tmp_path, alone(settings))


def test_a_resumed_run_has_the_noise_of_every_rank(tmp_path, beside, monkeypatch):
    """Dropout: each rank draws its own, and goes on where it was."""
    dropout = ["model.adapter=lora", "model.lora.lr=0.01", "model.lora.dropout=0.5"]
    cfg = composed(*COMMON, *dropout, "trainer=ddp", "steps=4", "eval.every=4", "resume_every=2")
    run.run(cfg, tmp_path / "alone")
    runs.broken_after(tmp_path / "broken", cfg, 3, monkeypatch)
    (kept,) = run_folder.snapshots(tmp_path / "broken")
    first, second = (state["torch"] for state in snapshot.read(kept)["random"])
    assert not torch.equal(first, second)
    run.run(cfg, tmp_path / "broken")
    runs.same(tmp_path / "broken", tmp_path / "alone")


def test_more_gpus_than_there_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^trainer\.devices=3: torch finds 2 GPU\(s\) on this machine"):
        run.run(composed(*COMMON, "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=3"), tmp_path)
