import json

import pytest
import yaml

from dash_exp.core.errors import UserError
from dash_exp.results import cells
from dash_exp.results.cells import Cell, Results
from dash_exp.results.run_folder import overrides_by_key


def cell(tmp_path, overrides, status="done", baseline=None, **result):
    folder = tmp_path / overrides.replace(" ", ",")
    by_key = overrides_by_key(overrides.split())
    config = {"seed": int(by_key.get("seed", 0)), "study": {"baseline": baseline}}
    return Cell(folder, by_key, status, config, {"status": status, **result})


def test_arms_are_what_differs_but_for_the_seed(tmp_path):
    cells = [
        cell(tmp_path, f"steps=2 algo={a} kl.coef={k} seed={s}") for s in (0, 1) for a in ("grpo", "dash") for k in (0, 0.04)
    ]
    found = Results(cells)
    assert found.swept == ["algo", "kl.coef"]
    assert found.arms == ["grpo, kl.coef=0", "grpo, kl.coef=0.04", "dash, kl.coef=0", "dash, kl.coef=0.04"]
    assert [c.seed for c in found.of_arm("dash, kl.coef=0")] == [0, 1]
    assert found.baseline == "grpo, kl.coef=0"


def test_an_arm_is_compared_within_what_else_was_swept(tmp_path):
    """The baseline of the PPO runs with the large model is the DASH runs with the large model."""
    cells = [
        cell(tmp_path, f"model={m} algo={a} seed={s}", baseline=["algo=dash"])
        for m in ("small", "large")
        for a in ("dash", "ppo_mini")
        for s in (0, 1)
    ]
    found = Results(cells)
    assert found.baseline == "model=small, dash"
    assert {arm: found.baseline_of(arm, "model=small, dash") for arm in found.arms} == {
        "model=small, dash": "model=small, dash",
        "model=small, ppo_mini": "model=small, dash",
        "model=large, dash": "model=large, dash",
        "model=large, ppo_mini": "model=large, dash",
    }
    assert found.baseline_of("model=small, dash", "model=large, ppo_mini") == "model=large, ppo_mini"  # as asked for
    incomplete = Results([c for c in cells if c.overrides["model"] == "small" or c.overrides["algo"] != "dash"])
    assert incomplete.baseline_of("model=large, ppo_mini", "model=small, dash") == ""


def test_without_a_named_baseline_it_is_the_first_arm(tmp_path):
    found = Results([cell(tmp_path, f"algo={a} kl.coef={k} seed=3") for a in ("grpo", "dash") for k in (0, 0.04)])
    assert {found.baseline_of(arm, str(found.baseline)) for arm in found.arms} == {"grpo, kl.coef=0"}


def test_failed_cells_are_in_the_table_and_not_among_the_finished(tmp_path):
    cells = [cell(tmp_path, "algo=dash"), cell(tmp_path, "algo=grpo", "failed", error="RuntimeError: no cheese")]
    table = Results(cells).table()
    assert table["status"].tolist() == ["done", "failed"]
    assert table["error"].tolist()[1] == "RuntimeError: no cheese"
    assert Results(cells).of_arm("grpo") == []
    assert Results(cells).of_arm("grpo", status=None) == [cells[1]]


def run_folder(folder, overrides=(), **files):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "config.yaml").write_text("seed: 4\nname: x\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_run_folder_is_read(tmp_path):
    metrics = "step,time/elapsed_s,tokens/sampled,policy/version\n0,0.0,,0\n1,2.5,100,3\n2,5.5,50,6\n"
    folder = run_folder(tmp_path / "run", ["algo=dash"], result_json='{"status": "done"}', metrics_csv=metrics)
    found = cells.load_cell(folder)
    assert (found.status, found.seed, dict(found.overrides)) == ("done", 4, {"algo": "dash"})
    assert found.metrics["seconds"].tolist() == [0.0, 2.5, 5.5]
    assert found.metrics["sampled_tokens"].tolist() == [0, 100, 150]
    assert found.metrics["optimizer_steps"].tolist() == [0, 3, 6]
    assert found.problems.empty


def test_what_became_of_the_cells_of_a_sweep(tmp_path):
    run_folder(tmp_path / "b", result_json='{"status": "done"}')
    run_folder(tmp_path / "a", result_json='{"status": "fai')  # torn
    run_folder(tmp_path / "of_an_earlier_sweep", result_json='{"status": "failed"}')
    listed = [{"folder": name, "overrides": [f"algo={name}"]} for name in ("b", "a", "c")]
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": listed}))
    (tmp_path / "report").mkdir()
    found = {c.name: c.status for c in cells.cells_of(tmp_path)}
    assert list(found.items()) == [("b", "done"), ("a", "unfinished"), ("c", "waiting")]
    assert [p.name for p in cells.unlisted(tmp_path)] == ["of_an_earlier_sweep"]
    (tmp_path / "sweep.json").unlink()
    assert [c.name for c in cells.cells_of(tmp_path)] == ["a", "b", "of_an_earlier_sweep"]


def test_several_folders_are_one_comparison_and_a_cell_counts_once(tmp_path):
    run = run_folder(tmp_path / "sweep" / "b")
    assert len(cells.load([tmp_path / "sweep", run]).cells) == 1


def test_what_is_no_sweep_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        cells.load([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no runs"):
        cells.load([tmp_path / "empty"])
    (tmp_path / "empty" / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        cells.load([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"status": 5}, "status is 5, not one of done, failed, stopped, unfinished"),
        ({"status": ["done"]}, r"status is \[\"done\"\], not one of"),
        ({"status": "done", "accuracy/in_dist/final": "0.9"}, 'accuracy/in_dist/final is "0.9", not a number'),
        ({"status": "done", "completions/kept": {}}, "completions/kept is {}, not a number"),
        ({"status": "failed", "error": 3}, "error is 3, not text"),
    ],
)
def test_a_result_that_no_run_writes_is_refused_with_its_file(tmp_path, content, says):
    folder = run_folder(tmp_path / "a", result_json=json.dumps(content))
    with pytest.raises(UserError, match=f"{folder.name}/result.json: {says}"):
        cells.load([tmp_path])


@pytest.mark.parametrize(
    "content", ["[]", '{"cells": 5}', '{"cells": [{"folder": "a"}]}', '{"cells": [{"folder": "a", "overrides": [1]}]}']
)
def test_a_list_of_cells_that_no_sweep_writes_is_refused(tmp_path, content):
    run_folder(tmp_path / "a")
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep.json: does not list cells"):
        cells.load([tmp_path])


def test_names_of_problems_are_text_whatever_they_look_like(tmp_path):
    """Also where all ids of a file are numbers, or one is what pandas takes for a missing value."""
    table = "test,problem,base,final\n2024,007,0,1\n2024,NA,1,\n"
    found = cells.load_cell(run_folder(tmp_path / "a", problems_csv=table)).problems
    assert found["problem"].tolist() == ["007", "NA"]
    assert found["test"].tolist() == ["2024", "2024"]
    assert found["final"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    "files",
    [
        {"problems_csv": "test,problem\na,b\n"},
        {"problems_csv": "test,problem,base,final\na,b,yes,no\n"},
        {"metrics_csv": "step\nx\n"},
    ],
)
def test_a_table_of_other_columns_is_as_good_as_none(tmp_path, files):
    found = cells.load_cell(run_folder(tmp_path / "a", **files))
    assert found.problems.empty and found.metrics.empty
