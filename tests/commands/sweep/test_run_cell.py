"""One cell of a sweep: done, failed, and killed."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import composed
from omegaconf import OmegaConf

from dash_exp.commands.sweep import run_cell
from dash_exp.core.errors import UserError
from dash_exp.results import run_folder


def in_cell(monkeypatch, sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper", overrides=()):
    """As if Hydra ran a cell of a sweep here."""
    cfg = OmegaConf.create({"sweeper": {"_target_": sweeper}, "overrides": {"task": list(overrides)}})
    monkeypatch.setattr(run_cell.HydraConfig, "get", lambda: cfg)


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
        run_cell.run_cell(composed(*overrides), tmp_path, never)
    assert (tmp_path / "result.json").read_text() == before


def test_what_fails_after_the_end_of_a_run_does_not_undo_it(tmp_path, monkeypatch):
    in_cell(monkeypatch)

    def run_then_fail(cfg, run_dir, in_sweep):
        done_cell(run_dir)
        raise OSError("no picture")

    assert run_cell.run_cell(composed(), tmp_path, run_then_fail) is None
    assert run_folder.read_result(tmp_path)["status"] == "done"


def test_a_cell_that_fails_again_says_the_new_reason(tmp_path, monkeypatch):
    in_cell(monkeypatch)
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "error": "the old reason"}))

    def fail(cfg, run_dir, in_sweep):
        raise OSError("the new reason")

    run_cell.run_cell(composed(), tmp_path, fail)
    assert run_folder.read_result(tmp_path)["error"] == "OSError: the new reason"


def test_a_cell_that_takes_the_process_down_lets_the_others_go_first(tmp_path):
    """As the system's memory killer does: nothing of the attempt comes to an end. The third start passes it by, once."""
    code = "import os, sys; from pathlib import Path; from dash_exp.commands.sweep.run_cell import attempt\n"
    code += "with attempt(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    died = [subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True) for _ in range(4)]
    assert [p.returncode for p in died] == [-9, -9, 1, -9]
    assert "the process ended in this cell 2 times" in died[2].stderr
    (tmp_path / "attempts").unlink()
    for _ in range(3):  # a failure is an end
        with pytest.raises(OSError), run_cell.attempt(tmp_path):
            raise OSError


def test_an_objective_that_is_no_number_is_refused():
    assert run_cell.objective(composed(), {"accuracy/in_dist/final": 0.5}) == 0.5
    with pytest.raises(UserError, match=r"^objective=accuracy/in_dist/final: is not a number .* Use one such as eval/x/final"):
        run_cell.objective(composed(), {"status": "done", "eval/x/final": 0.25})
