"""Sweeps as a user runs them: stopped in the middle, with an arm that fails, with arms that stop where the baseline stopped."""

import shutil
import signal
import time
from pathlib import Path

import forked
import pandas.testing
import pytest
from conftest import LETTERS, TRAIN, environment
from omegaconf import OmegaConf

from dash_exp.core.process import alone_in
from dash_exp.results import cells, run_folder

SWEEP = [*LETTERS, "hydra.callbacks.ledger.report=null"]
TIMES = ("time/", "device", "git")


def table(folder: Path):
    """`cells.csv` of a sweep folder, times aside."""
    found = cells.load([folder]).table()
    return found[[c for c in found.columns if not c.startswith(TIMES)]]


def statuses(folder: Path) -> dict[str, str]:
    found = cells.cells_of(folder)
    return {cells.Results(found).arm(cell): cell.status for cell in found}


def wait_for(there) -> None:
    for _ in range(1200):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come within a minute")


# --- continuing --------------------------------------------------------------------------------------------------------


def test_a_sweep_that_was_killed_continues_where_it_was(train, tmp_path):
    """SIGKILL in the third of four cells, after its fourth step: the first two are not run again, the third goes on from its
    last snapshot, and the table is that of a sweep left alone.
    """
    arms = ["-m", *SWEEP, "algo=grpo,dash", "seed=0,1", "steps=12", "eval.every=6", "resume_every=3", "kl=adaptive"]
    assert train(*arms, "hydra.sweep.dir=alone").returncode == 0
    said = tmp_path / "said"
    said.touch()  # the program may take a while to open it
    command = [*arms, "hydra.sweep.dir=killed"]
    with forked.Program(TRAIN, command, tmp_path, environment(tmp_path), said, said) as started:
        folders: list[Path] = []
        while len(folders) < 3:
            assert started.poll() is None, said.read_text()
            time.sleep(0.02)
            lines = said.read_text().split("\n")[:-1]
            folders = [Path(line.rpartition(" -> ")[2]) for line in lines if " -> " in line]
        wait_for(lambda: (folders[2] / "completions" / "step_00004.jsonl").exists())
        started.send_signal(signal.SIGKILL)
    folder = tmp_path / "killed"
    before = {c.folder: c.status for c in cells.cells_of(folder)}
    assert sorted(before.values()) == ["done", "done", "unfinished", "waiting"]
    assert before[folder / folders[2].name] == "unfinished"
    step = int(run_folder.snapshots(folder / folders[2].name)[0].name[5:10])
    assert step in (3, 6, 9)
    written = {c: (c / "result.json").stat().st_mtime_ns for c, status in before.items() if status == "done"}

    again = train(*arms, "hydra.sweep.dir=killed")
    assert again.returncode == 0, again.stderr
    assert "sweep of 4 cells into killed, 2 of them done before" in again.stdout
    assert again.stdout.count(" -> ") == 2  # cells that were started
    assert again.stdout.count(f"resumes after outer step {step} ") == 1
    assert written == {c: (c / "result.json").stat().st_mtime_ns for c in written}
    pandas.testing.assert_frame_equal(table(folder), table(tmp_path / "alone"))
    assert set(table(folder)["status"]) == {"done"}
    for cell, other in zip(cells.cells_of(folder), cells.cells_of(tmp_path / "alone"), strict=True):
        assert cell.metrics["step"].tolist() == list(range(13))  # each row once
        columns = [c for c in cell.metrics if not c.startswith(TIMES) and c != "seconds"]
        pandas.testing.assert_frame_equal(cell.metrics[columns], other.metrics[columns], check_exact=True)
        assert not (cell.folder / run_folder.SNAPSHOTS).exists()


def test_an_arm_that_crashes_does_not_end_the_others(train, tmp_path):
    """The second cell asks for completions that do not fit into the context."""
    arms = ["-m", *SWEEP, "rollout.max_response_tokens=40,5000,30"]
    done = train(*arms)
    assert done.returncode == 1
    assert list(statuses(tmp_path / "multirun" / "small").values()) == ["done", "failed", "done"]
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0] == "error: 1 of 3 cells are not done; the same command tries them again:"
    assert "rollout.max_response_tokens=5000" in last[1]
    assert "context of 2048" in last[1]
    assert "sweep: 2 of 3 cells done, 1 failed" in done.stdout
    assert "Traceback" not in done.stderr  # the user can mend it

    again = train(*arms)
    assert again.returncode == 1
    assert "2 of them done before" in again.stdout

    alone = train(*SWEEP, "rollout.max_response_tokens=30")
    assert alone.returncode == 0
    assert "sweep: " not in alone.stdout  # it has the name of the sweep, and is no cell of it


def test_a_cell_of_other_settings_is_never_overwritten(train, tmp_path):
    """Two sweeps that would share a cell's folder, since its name does not hold what the file's other settings are."""
    assert train("-m", *SWEEP, "seed=0,1").returncode == 0
    for result in (tmp_path / "multirun" / "small").rglob("config.yaml"):
        if ".hydra" not in result.parts:
            result.write_text(result.read_text().replace("clip_norm: 1.0", "clip_norm: 2.0"))
    refused = train("-m", *SWEEP, "seed=0,1")
    assert refused.returncode == 1
    assert "holds a finished run with other settings" in refused.stderr
    assert {c.status for c in cells.cells_of(tmp_path / "multirun" / "small")} == {"done"}


def test_cells_that_would_share_a_folder_are_refused(train, tmp_path):
    refused = train("-m", *SWEEP, "teacher.file=a/b,a_b")
    assert refused.returncode == 1
    assert "would share the folder" in refused.stderr
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_sweep_ends_with_the_verdicts_on_what_it_claims(train, tmp_path):
    """Cells that are done are judged by another claim without a new run. What the command leaves out of the file has no
    verdict, and an arm that neither has is refused.
    """

    def claiming(*more, arm="dash", claim="kind: faster, ratio: 1e12"):
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        (tmp_path / "sweeps" / "mine.yaml").write_text(
            f"""
defaults: [config, _self_]
name: mine
study:
  claims:
    - {{arm: ["algo={arm}"], against: [algo=grpo], {claim}}}
hydra: {{mode: MULTIRUN, sweeper: {{params: {{algo: "grpo,dash,no_gf", seed: "0,1"}}}}}}
"""
        )
        few = [setting for setting in LETTERS if not setting.startswith("name=")]
        return train("-cd", "sweeps", "-cn", "mine", *few, *more)

    done = claiming("algo=dash,grpo")
    assert done.returncode == 0, done.stderr
    verdict, found, page = done.stdout.strip().splitlines()[-3:]
    assert verdict.startswith("supported: training time of dash is below ")
    assert found.startswith("  dash takes ")
    assert page == "report multirun/mine/report/report.html"
    again = claiming("algo=dash,grpo", arm="dash,no_gf", claim="kind: faster, ratio: 1e-12")
    assert "4 of them done before" in again.stdout, again.stderr
    assert again.stdout.strip().splitlines()[-3].startswith("contradicted: ")
    alone = claiming("algo=dash")
    assert alone.stdout.strip().splitlines()[-2] == "  not judged: no cell has algo=grpo"

    for wrong, message in (
        ({"arm": "dahs"}, "study.claims[0].arm: no cell of this sweep has algo=dahs. Use algo=dash, algo=grpo, algo=no_gf."),
        ({"claim": "kind: not_worse"}, "study.claims[0].margin: is not given, and kind=not_worse needs it."),
    ):
        refused = claiming("name=other", "algo=dash,grpo", **wrong)
        assert refused.returncode == 1
        assert message in refused.stderr
    assert not (tmp_path / "multirun" / "other").exists()


# --- runs that sweeps share --------------------------------------------------------------------------------------------


def test_cells_that_another_sweep_has_done_are_copied(train, tmp_path):
    """A copied cell is the run that this sweep would have made, to the last digit. What is another run is made, and so is
    one whose weights are not there.
    """
    take = "hydra.callbacks.ledger.take_from=[multirun/small]"
    assert train("-m", *SWEEP, "algo=dash", "seed=0,1", "kl.coef=0.04").returncode == 0
    others = ["-m", *SWEEP, "kl.coef=0.04,0", "seed=0,1", "study.question=Another one?"]
    assert train(*others, "name=alone").returncode == 0
    done = train(*others, take, "name=shared")
    assert done.returncode == 0, done.stderr
    assert "sweep of 4 cells into multirun/shared, 2 taken from multirun/small" in done.stdout
    assert done.stdout.count(" -> ") == 2  # cells that were started
    assert "not taken: kl.coef=0,seed=1 (nearest has kl.coef=0.04, not 0)" in done.stdout
    shared, alone = (tmp_path / "multirun" / name for name in ("shared", "alone"))
    pandas.testing.assert_frame_equal(table(shared).drop(columns=["cell", "taken_from"]), table(alone).drop(columns="cell"))
    assert table(shared)["taken_from"].fillna("").tolist() == ["small", "small", "", ""]
    for cell, other in zip(cells.cells_of(shared), cells.cells_of(alone), strict=True):
        assert {**cell.config, "name": "alone"} == dict(other.config)
        assert (cell.folder / "completions" / "step_00002.jsonl").is_file()
        assert (cell.folder / "checkpoints" / "last").is_dir()
    again = train(*others, take, "name=shared")
    assert "sweep of 4 cells into multirun/shared, 4 of them done before, 0 taken from multirun/small" in again.stdout

    renamed = ["-m", *SWEEP, "algo=no_gf", "filter=advantage,none", "kl.coef=0.04", take]
    assert "2 cells into multirun/labels, 1 taken from" in train(*renamed, "name=labels").stdout  # DASH by another name
    for cell in cells.cells_of(tmp_path / "multirun" / "small"):
        shutil.rmtree(cell.folder / "checkpoints" / "best")
    missing = train("-m", *SWEEP, "kl.coef=0.04", "seed=1,2", take, "name=weights")
    assert "2 cells into multirun/weights, 0 taken from" in missing.stdout
    assert "seed=1 (nearest has no checkpoints/best there)" in missing.stdout
    without = train("-m", *SWEEP, "kl.coef=0.04", "seed=1,2", "checkpoints=[]", take, "name=without")
    assert "2 cells into multirun/without, 1 taken from" in without.stdout
    assert not list((tmp_path / "multirun" / "without").glob("*/checkpoints/last"))
    running = cells.cells_of(tmp_path / "multirun" / "without")[0].folder
    (running / "result.json").unlink()
    with alone_in(running):
        refused = train("-m", *SWEEP, "kl.coef=0.04", "seed=1,2", "checkpoints=[]", take, "name=without")
    assert "1 of them done before, 0 taken from" in refused.stdout
    assert "another process is working in it" in refused.stderr
    lost = cells.cells_of(tmp_path / "multirun" / "small")[0].folder / "completions" / "lost"
    lost.symlink_to("nowhere")
    refused = train("-m", *SWEEP, "kl.coef=0.04", "seed=0,1", "checkpoints=[]", take, "name=lost")
    assert refused.returncode == 1
    assert "completions/lost: cannot be copied" in refused.stderr
    lost.unlink()
    matched = ["budget.match=optimizer_steps", "study.baseline=['algo=dash']", take, "name=matched"]
    assert "2 cells into multirun/matched, 0 taken from" in train("-m", *SWEEP, "algo=dash,grpo", *matched).stdout


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ("[multirun/nowhere]", "error: multirun/nowhere: there is no such folder"),
        ("[empty]", "error: empty: contains no runs"),
        ("[waiting]", "take_from=[waiting]: has no cell that is done"),
        ("multirun/small", "take_from=multirun/small: is not a list of folders"),
        ("[7]", "take_from=[7]: is not a list of folders"),
        ("[wandb:us/them/theirs]", "is not a list of folders"),
    ],
)
def test_folders_without_done_cells_to_copy_are_refused(train, tmp_path, folders, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "sweep.json").write_text('{"cells": [{"folder": "seed=0", "overrides": ["seed=0"]}]}')
    refused = train("-m", *SWEEP, "seed=0,1", f"hydra.callbacks.ledger.take_from={folders}")
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_search_has_no_cells_to_copy(train, tmp_path):
    search = ["-m", *SWEEP, "hydra/sweeper=optuna", "optimizer.lr=interval(1e-5,1e-2)"]
    refused = train(*search, "hydra.callbacks.ledger.take_from=[multirun/small]")
    assert refused.returncode == 1
    assert "take_from: names sweeps to copy cells from, and a search has no list of cells" in refused.stderr
    assert not list(tmp_path.rglob("metrics.csv"))


# --- compute-matched ---------------------------------------------------------------------------------------------------


def test_arms_stop_where_their_baseline_stopped(train, tmp_path):
    """PPO-Multi takes 3 optimizer steps an outer step, DASH one: at equal optimizer steps it gets 2 of DASH's 6."""
    arms = [*SWEEP, "algo=dash,ppo_multi", "seed=0,1", "steps=6", "budget.match=optimizer_steps"]
    done = train("-m", *arms, "study.baseline=['algo=dash']")
    assert done.returncode == 0, done.stderr
    found = cells.load([tmp_path / "multirun" / "small"])
    steps = {
        arm: [(c.result["steps"], c.result["optimizer_steps"], c.result["stopped_by"]) for c in found.of_arm(arm)]
        for arm in found.arms
    }
    assert steps == {"dash": [(6, 6, None)] * 2, "ppo_multi": [(2, 6, "optimizer_steps")] * 2}
    for cell in found.of_arm("ppo_multi"):
        assert cell.metrics["accuracy/in_dist"].notna().iloc[-1]  # where it stopped it was evaluated
        assert cell.config["budget"]["optimizer_steps"] == 6

    refused = train("-m", *arms[:-4], "algo=ppo_multi,dash", *arms[-3:], "study.baseline=['algo=dash']", "name=turned_round")
    assert refused.returncode == 1
    assert "needs its baseline to be done first, and the baseline does not come before it in this sweep" in refused.stderr
    assert not list(tmp_path.rglob("turned_round/*/metrics.csv"))


# --- searches ----------------------------------------------------------------------------------------------------------


def test_a_search_with_optuna_gets_the_objective_and_continues(train, tmp_path):
    search = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_jobs=1",
        "+hydra.sweeper.sampler.seed=0",
    ]
    search += [*SWEEP, "algo=dash", "optimizer.lr=tag(log,interval(1e-5,1e-2))", "objective=accuracy/out_dist/final"]
    done = train(*search, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "multirun" / "small"
    first = [c.result["accuracy/out_dist/final"] for c in cells.cells_of(folder)]
    assert len(first) == 2
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == max(first)

    more = train(*search, "hydra.sweeper.n_trials=3")
    assert more.returncode == 0, more.stderr
    assert len(cells.cells_of(folder)) == 3
    assert more.stdout.count(" -> ") == 1  # the two trials that were there are not run again


def test_a_trial_that_fails_does_not_end_the_search(train, tmp_path):
    """One is refused by its settings, one when the model is there; the third is the result. The end lists the failures."""
    search = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_jobs=1",
    ]
    limits = [o for o in SWEEP if not o.startswith("rollout.max_response_tokens")]
    done = train(*search, *limits, "rollout.max_response_tokens=choice(-3,5000,8)", "hydra.callbacks.ledger.report=null")
    assert done.returncode == 1
    assert "error: 2 of 3 cells are not done" in done.stderr
    assert "rollout.max_response_tokens=-3: is not a whole number" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "multirun" / "small"
    assert OmegaConf.load(folder / "optimization_results.yaml").best_params == {"rollout.max_response_tokens": 8}
