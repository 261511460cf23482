"""Problems that change under a stopped run, and between the cells of a sweep."""

import json

import pytest
from conftest import LETTERS, composed
from json_lines import write
from omegaconf import OmegaConf
from runs import broken_after

from dash_exp.commands import run
from dash_exp.commands.sweep.finished import with_other_problems
from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder


def own_problems(folder):
    """Settings of a run on problems in a folder, and what writes them with the answer of the first test problem."""

    def written(answer, note="as it was"):
        for split, last in (("train", note), ("test", answer)):
            rows = [{"prompt": f"{split} {i}", "answer": last if i == 0 else "7"} for i in range(16)]
            write(folder, rows, f"{split}.jsonl")

    settings = [o for o in LETTERS if ".size" not in o or "architecture" in o]
    return [*settings, "data=jsonl", f"data.path={folder}", "reward=format", "reward.pattern='[^a-m]*'"], written


def test_problems_that_have_changed_since_are_refused(tmp_path, monkeypatch, capsys, caplog):
    settings, written = own_problems(tmp_path / "data")
    cfg, folder = composed(*settings, "steps=3", "eval.every=3"), tmp_path / "run"
    written("7")
    broken_after(folder, cfg, 2, monkeypatch)
    written("8")
    with pytest.raises(
        UserError, match=r"^data\.tests\.in_dist: its problems have changed since the run in .*/run was stopped"
    ):
        run.run(cfg, folder)
    written("7", "changed")
    with pytest.raises(UserError, match=r"^data\.train: its problems have changed since .*resume=false starts again"):
        run.run(cfg, folder)
    written("7")
    result = run.run(cfg, folder)
    assert "resumes after outer step 2" in capsys.readouterr().out
    assert len(result["digest/data.tests.in_dist"]) == len(result["digest/data.train"]) == 16
    assert json.loads((folder / "result.json").read_text())["digest/data.train"] == result["digest/data.train"]
    assert cells.load_cell(folder).problems["digest"].nunique() == 16
    written("8")  # for another cell of the same sweep
    run.run(composed(*settings, "steps=1", "eval.every=3"), tmp_path / "other", in_sweep=True)
    assert "data.tests.in_dist: 1 done cell(s) in " in caplog.text


def test_cells_of_a_sweep_whose_data_has_changed_are_told_of(tmp_path):
    cfg = composed("data=jsonl", "data.path=there")
    for name, digest, status in (("a", "1", "done"), ("b", "1", "done"), ("c", "2", "done"), ("d", "1", "failed")):
        (tmp_path / name).mkdir()
        run_folder.write_result(tmp_path / name, {"status": status, "digest/data.train": digest})
        (tmp_path / name / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (said,) = with_other_problems(tmp_path / "new", cfg, {"data.train": "2", "data.tests.in_dist": "3"})
    assert said.startswith("data.train: 2 done cell(s) in ")
    assert with_other_problems(tmp_path / "new", cfg, {"data.train": "1"})[0].startswith("data.train: 1 done cell(s)")
    assert with_other_problems(tmp_path / "new", composed("data=jsonl", "data.path=other"), {"data.train": "2"}) == []
