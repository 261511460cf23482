"""Sweeps as a user runs them: stopped in the middle, with an arm that fails, with arms that stop where the baseline stopped."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pandas.testing
import pytest
from conftest import LETTERS, TRAIN, composed, environment
from omegaconf import OmegaConf

from dash_exp.commands import sweep
from dash_exp.commands.sweep import cell_name, finished
from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder

SWEEP = [*LETTERS, "hydra.callbacks.ledger.report=null"]
TIMES = ("time/", "device", "git")


def table(folder: Path):
    """`cells.csv` of a sweep folder, times aside."""
    found = cells.load([folder]).table()
    return found[[c for c in found.columns if not c.startswith(TIMES)]]


def statuses(folder: Path) -> dict[str, str]:
    return {cells.Results(cells).arm(cell): cell.status for cells in [cells.cells_of(folder)] for cell in cells}


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
    command = [*arms, "hydra.sweep.dir=killed"]
    with forked.Program(TRAIN, command, tmp_path, environment(tmp_path), said, said) as started:
        cells: list[Path] = []
        while len(cells) < 3:
            assert started.poll() is None, said.read_text()
            time.sleep(0.02)
            lines = said.read_text().split("\n")[:-1]
            cells = [Path(line.rpartition(" -> ")[2]) for line in lines if " -> " in line]
        wait_for(lambda: (cells[2] / "completions" / "step_00004.jsonl").exists())
        started.send_signal(signal.SIGKILL)
    folder = tmp_path / "killed"
    before = {c.folder: c.status for c in cells.cells_of(folder)}
    assert sorted(before.values()) == ["done", "done", "unfinished", "waiting"]
    assert before[folder / cells[2].name] == "unfinished"
    step = int(run_folder.snapshots(folder / cells[2].name)[0].name[5:10])
    assert step in (3, 6, 9)
    written = {c: (c / "result.json").stat().st_mtime_ns for c, status in before.items() if status == "done"}

    again = train(*arms, "hydra.sweep.dir=killed")
    assert again.returncode == 0, again.stderr
    assert "sweep of 4 cells into killed, 2 of them done before" in again.stdout
    assert again.stdout.count(" -> ") == 2  # cells that were started
    assert again.stdout.count(f"goes on after outer step {step} ") == 1
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


def in_cell(monkeypatch, sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper", overrides=()):
    """As if Hydra ran a cell of a sweep here."""
    cfg = OmegaConf.create({"sweeper": {"_target_": sweeper}, "overrides": {"task": list(overrides)}})
    monkeypatch.setattr(sweep.HydraConfig, "get", lambda: cfg)


def done_cell(folder: Path, *overrides: str) -> Path:
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed(*overrides), resolve=True))
    (folder / "result.json").write_text(json.dumps({"status": "done", "accuracy/in_dist/final": 0.5}))
    return folder


def never(*args, **kwargs):
    raise AssertionError("it was run")


@pytest.mark.parametrize(
    "overrides",
    [["seed=1"], ["objective=accuracy/nowhere/final"], ["budget.match=seconds", "study.baseline=['algo=grpo']"]],
    ids=["other settings", "no such objective", "its baseline is gone"],
)
@pytest.mark.parametrize("sweeper", ["BasicSweeper", "OptunaSweeper"])
def test_what_is_done_is_never_overwritten(tmp_path, monkeypatch, overrides, sweeper):
    in_cell(monkeypatch, f"x.{sweeper}", ["algo=dash"])
    before = (done_cell(tmp_path) / "result.json").read_text()
    with contextlib.suppress(UserError):  # a search gets the exception
        sweep.run_cell(composed(*overrides), tmp_path, never)
    assert (tmp_path / "result.json").read_text() == before


def test_what_fails_after_the_end_of_a_run_does_not_undo_it(tmp_path, monkeypatch):
    in_cell(monkeypatch)

    def run_then_fail(cfg, run_dir, in_sweep):
        done_cell(run_dir)
        raise OSError("no picture")

    assert sweep.run_cell(composed(), tmp_path, run_then_fail) is None
    assert run_folder.read_result(tmp_path)["status"] == "done"


def test_a_cell_that_fails_again_says_the_new_reason(tmp_path, monkeypatch):
    in_cell(monkeypatch)
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "error": "the old reason"}))

    def fail(cfg, run_dir, in_sweep):
        raise OSError("the new reason")

    sweep.run_cell(composed(), tmp_path, fail)
    assert run_folder.read_result(tmp_path)["error"] == "OSError: the new reason"


def test_a_cell_that_takes_the_process_down_lets_the_others_go_first(tmp_path):
    """As the system's memory killer does: nothing of the attempt comes to an end. The third start passes it by, once."""
    code = "import os, sys; from pathlib import Path; from dash_exp.commands.sweep import attempt\n"
    code += "with attempt(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    died = [subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True) for _ in range(4)]
    assert [p.returncode for p in died] == [-9, -9, 1, -9]
    assert "the process ended in this cell 2 times" in died[2].stderr
    (tmp_path / "attempts").unlink()
    for _ in range(3):  # a failure is an end
        with pytest.raises(OSError), sweep.attempt(tmp_path):
            raise OSError


def test_cells_that_would_share_a_folder_are_refused(train, tmp_path):
    refused = train("-m", *SWEEP, "teacher.file=a/b,a_b")
    assert refused.returncode == 1
    assert "would share the folder" in refused.stderr
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
    assert "needs its baseline to be done, and it is not before it in this sweep" in refused.stderr
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


def test_an_objective_that_is_no_number_is_refused():
    assert sweep.objective(composed(), {"accuracy/in_dist/final": 0.5}) == 0.5
    with pytest.raises(UserError, match=r"^objective=accuracy/in_dist/final: is no number .* Use one such as eval/x/final"):
        sweep.objective(composed(), {"status": "done", "eval/x/final": 0.25})


# --- parts -------------------------------------------------------------------------------------------------------------


def test_cell_names_are_folder_names():
    assert cell_name("algo=dash,kl.coef=0") == "algo=dash,kl.coef=0"
    assert cell_name("data.path=../x/y") == "data.path=.._x_y"
    assert cell_name("") == "cell"
    first, second = cell_name("a" * 300), cell_name("a" * 299 + "b")
    assert len(first) <= 150
    assert first != second


def test_a_finished_cell_is_known_by_its_settings(tmp_path):
    cfg = composed()
    assert not finished(tmp_path, cfg)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed"}))
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text('{"status": "do')
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    assert finished(tmp_path, cfg)
    with pytest.raises(UserError, match="holds a finished run with other settings"):
        finished(tmp_path, composed("seed=1"))


def test_where_a_matched_budget_ended_is_no_other_setting(tmp_path):
    """A second DASH run takes other seconds; the PPO arm that was matched with the first is done all the same."""
    matched = composed("budget.match=seconds", "study.baseline=['algo=dash']", "budget.seconds=12.5")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(matched, resolve=True))
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    assert finished(tmp_path, composed("budget.match=seconds", "study.baseline=['algo=dash']"))
    with pytest.raises(UserError, match="other settings"):
        finished(tmp_path, composed("study.baseline=['algo=dash']", "budget.seconds=12.5"))


def cell(overrides: str, status: str, total_s: float = 0.0) -> cells.Cell:
    result = {"status": status, "time/total_s": total_s} if status != "waiting" else {}
    return cells.Cell(Path(overrides), dict(o.split("=") for o in overrides.split()), status, result=result)


def test_how_long_the_rest_takes_comes_from_the_cells_that_are_done():
    cells = [cell("algo=grpo seed=0", "done", 100), cell("algo=dash seed=0", "done", 40), cell("algo=sft seed=0", "failed", 1)]
    cells += [cell("algo=grpo seed=1", "waiting"), cell("algo=dash seed=1", "waiting"), cell("algo=new seed=1", "waiting")]
    assert sweep.left_s(cells) == 100 + 40 + (100 + 40) / 2
    assert sweep.standing(cells, 1) == "sweep: 2 of 6 cells done, 1 failed; about 3:30 left"
    assert sweep.standing(cells, 2).endswith("about 1:45 left")
    assert sweep.standing(cells[:2], 1) == "sweep: 2 of 2 cells done"
    assert sweep.left_s(cells[2:]) == 0  # nothing to go by


def test_a_run_alone_has_no_baseline():
    sweep.check_alone(composed())
    with pytest.raises(UserError, match=r"^budget.match=seconds: stops an arm of a sweep .* and this is a run alone"):
        sweep.check_alone(composed("budget.match=seconds", "study.baseline=['algo=dash']"))


def test_the_baseline_of_a_cell():
    cfg = composed("budget.match=seconds", "study.baseline=['algo=dash']")
    assert sweep._wanted_baseline(cfg, {"algo": "ppo_mini", "seed": "1"}) == {"algo": "dash", "seed": "1"}
    assert sweep._wanted_baseline(cfg, {"algo": "dash", "seed": "1"}) is None
    assert sweep._wanted_baseline(composed(), {"algo": "ppo_mini"}) is None
