"""Warnings about the cells of a comparison."""

import json

import pytest
from reports import warnings_of
from synthetic import write_cell

from dash_exp.report import comparison
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_a_torn_file_is_as_good_as_none(sweep):
    (sweep / "algo=dash,seed=0" / "metrics.csv").write_bytes(b"step,a\n1,2\n1,2,3,4\n")
    (sweep / "algo=dash,seed=0" / "problems.csv").write_bytes(b"\xff\xfe\x00")
    said = warnings_of(sweep)
    assert "metrics.csv is missing or unreadable in 1 done cell" in said
    assert "problems.csv is missing or unreadable in 1 done cell" in said


def test_other_machines_and_failed_gradings(sweep):
    for seed, changed in enumerate(({"git": "b" * 40}, {"device": "Some GPU"}, {"device": "Some CPU, 4 thread(s)"})):
        file = sweep / f"algo=dash,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed | {"score/timeouts": 2, "sizes/parameters": 2000}))
    said = warnings_of(sweep)
    assert "different git revisions: " in said and "bbbbbbbbbbbb (1 cell)" in said
    assert "different devices" in said and "Some GPU (1 cell)" in said
    assert "different numbers of torch threads" in said
    assert "6 time-outs in training" in said
    assert "parameters differs between cells" in said and "files have changed" in said


def test_cells_that_were_run_for_another_sweep(sweep):
    assert "run for another sweep" not in warnings_of(sweep)
    for seed in range(3):
        file = sweep / f"algo=dash,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"taken_from": "kl" if seed else "efficiency_math"}))
    assert "3 cells were run for another sweep: efficiency_math (1 cell), kl (2 cells)." in warnings_of(sweep)


@pytest.mark.parametrize(
    ("grpo", "dash", "over_problems", "said"),
    [
        ("abcd", "abcd", 0.25, False),  # the fourth of four problems
        (None, "abcd", 0.25, False),  # a run of an earlier version
        ("abcd", "abce", 0.0, True),  # the fourth is another problem
        ("abcd", "efgh", None, True),
    ],
)
def test_problems_that_have_changed_are_not_paired_by_their_id(grpo, dash, over_problems, said, tmp_path):
    write_cell(tmp_path / "grpo", ["algo=grpo", "seed=0"], in_dist=(1, 1, 1, 0), digests=grpo)
    write_cell(tmp_path / "dash", ["algo=dash", "seed=0"], in_dist=(1, 1, 1, 1), digests=dash)
    found = comparison.difference(load([tmp_path]), "dash", "grpo", "in_dist").over_problems
    assert (found and found.value) == over_problems
    warning = "data.tests.in_dist had other problems in some cells: its data has changed between the runs. Differences leave"
    assert (warning in warnings_of(tmp_path)) == said


def test_training_problems_that_have_changed(sweep):
    for seed in range(3):
        file = sweep / f"algo=dash,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"digest/data.train": "a" if seed else "b"}))
    assert "data.train had other problems in some cells: its data has changed between the runs." in warnings_of(sweep)


EXACT = {"_target_": "dash_exp.rewards.exact.ExactReward", "pattern": "A:(.*)", "timeout_s": 1}
FORM = {"_target_": "dash_exp.rewards.format.FormatReward", "pattern": ".*"}
SUM = {"_target_": "dash_exp.rewards.sums.SumReward", "parts": {"exact": EXACT, "form": FORM}, "correct": "exact"}


@pytest.mark.parametrize(
    ("grpo", "dash", "said"),
    [
        (
            {"reward": EXACT},
            {"reward": FORM},
            "in_dist was graded by rewards with different settings (FormatReward in dash; ExactReward in grpo)",
        ),
        ({"reward": EXACT}, {"reward": EXACT | {"timeout_s": 3}}, None),
        ({"reward": EXACT}, {"reward": SUM}, None),  # in which the same part says what is correct
        ({"reward": EXACT}, {"reward": EXACT, "own": FORM}, "in_dist was graded by rewards with different settings"),
        ({"reward": EXACT, "own": EXACT}, {"reward": FORM, "own": EXACT}, None),
    ],
)
def test_arms_whose_tests_are_not_graded_alike(grpo, dash, said, tmp_path):
    for arm, given in (("grpo", grpo), ("dash", dash)):
        settings = {"reward": given["reward"], "data": {"tests": {"in_dist": {"reward": given.get("own")}, "out_dist": {}}}}
        write_cell(tmp_path / arm, [f"algo={arm}", "seed=0"], settings=settings)
    warning = next((w for w in warnings_of(tmp_path).splitlines() if "in_dist was graded by" in w), None)
    assert (warning is None) if said is None else said in str(warning)


@pytest.mark.parametrize(("reward", "cause"), [(EXACT, "started"), (FORM, "were graded")])
def test_base_models_that_differ_have_a_cause(reward, cause, tmp_path):
    for arm, base, given in (("grpo", (1, 0, 0, 0), EXACT), ("dash", (1, 1, 1, 0), reward)):
        settings = {"reward": given, "data": {"tests": {"in_dist": {"reward": None}, "out_dist": {}}}}
        write_cell(tmp_path / arm, [f"algo={arm}", "seed=0"], base=base, settings=settings)
    found = next(w for w in warnings_of(tmp_path).splitlines() if w.startswith("The base model's accuracy on in_dist differs"))
    assert found.endswith(f". The runs {cause} differently.")
