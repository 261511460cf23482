"""What the sections of a report say, against numbers worked by hand."""

import json
import re
import shutil

import pandas as pd
import pytest
from reports import document_of, rows, section, texts
from synthetic import write_cell

from dash_exp import report
from dash_exp.core.watch import CHECKS
from dash_exp.report import comparison
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Table, to_html, to_markdown
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_what_the_report_says_of_it(sweep):
    document = document_of(sweep)
    assert document.lead == "Which?"
    assert dict(document.facts)["cells done"] == "6 of 6"
    dash = next(i for i in section(document, "summary").blocks[0].items if i.text == "dash").detail
    assert dash.startswith("91.7% in distribution: +16.7 points compared with grpo (−19.2 to +52.5 over 3 seeds: undecided)")
    assert "0.50 times the training time (0.50 to 0.50)" in dash
    assert "neither that the two arms differ nor that they are equal" in texts(document, "summary")
    assert rows(document, "arms")["grpo"][:3] == ["3", "75.0", "25.0"]
    assert rows(document, "arms")["base model"][1:3] == ["25.0", "25.0"]
    assert rows(document, "arms")["dash"][3:] == ["20 / 20", "50.0 s", "300", "210", "70.0%", "3", "all steps"]
    assert rows(document, "differences", 1)["dash"] == ["3", "0.50", "0.50 to 0.50", "−50.0%"]
    # against the base model grpo gains 0.75 - 0.25 with every seed, so there is an interval without width, and a word on it
    assert rows(document, "differences", 2)["grpo"][1:5] == ["3", "4", "+50.0", "+50.0 to +50.0"]
    assert "every seed gave exactly the same difference" in texts(document, "differences")
    assert texts(document, "failures") == "All cells are done."


def test_another_test_set_is_in_the_summary_where_it_differs(tmp_path):
    for seed in range(3):
        for algo, right in (("grpo", 19), ("dash", 10 + seed)):
            out_dist = [1] * right + [0] * (20 - right)
            cell = tmp_path / f"{algo}{seed}"
            write_cell(cell, [f"algo={algo}", f"seed={seed}"], [1, 0] * 10, out_dist, [0] * 20)
    said = next(
        i.detail for i in section(document_of(tmp_path, baseline="grpo"), "summary").blocks[0].items if i.text == "dash"
    )
    # -9, -8, -7 of 20: -40 points, sd 5, half-width 4.3027 x 5 / sqrt(3) = 12.4; t = -13.86, p = 0.005
    assert "; out of distribution −40.0 points (−52.4 to −27.6 over 3 seeds: lower, p = 0.005)" in said


def test_pass_at_k_before_and_after(tmp_path):
    for seed, final in enumerate((0.4, 0.6)):
        found = {f"eval/in_dist/pass@{k}/{when}": value for k in (1, 8) for when, value in (("base", 0.2), ("final", final))}
        write_cell(tmp_path / str(seed), ["algo=dash", f"seed={seed}"], result=found)
    document = document_of(tmp_path)
    table = next(b for b in section(document, "pass-at-k").blocks if isinstance(b, Table))
    assert [[c.text for c in row] for row in table.rows] == [
        ["base model", "in distribution", "20.0", "20.0"],
        ["dash", "in distribution", "50.0", "50.0"],
    ]


def test_a_sweep_over_models_has_a_base_model_for_each_arm(tmp_path):
    for model, base in (("tiny", (1, 0, 0, 0)), ("tiny_random", (0, 0, 0, 0))):
        write_cell(tmp_path / model, [f"model={model}", "seed=0"], base=base)
    document = document_of(tmp_path)
    shown = rows(document, "arms")
    assert shown["base model of model=tiny"][1:3] == ["25.0", "25.0"]
    assert shown["base model of model=tiny_random"][1:3] == ["0.0", "0.0"]
    assert "base model's accuracy" not in texts(document, "summary")
    # each against the model that it started from: 0.75 - 0.25, 0.75 - 0
    assert [d.over_seeds.value for d in comparison.differences(load([tmp_path]), BASE, "in_dist")] == [0.5, 0.75]


def test_phases_that_overlapped(tmp_path):
    write_cell(tmp_path / "a", ["algo=dash", "seed=0"], result={"time/sample_s": 90.0, "time/update_s": 90.0})
    assert "Sampling and training overlapped in dash" in texts(document_of(tmp_path), "phases")


def fires(**counts):
    none = {f"watch/{name}": 0 for name in CHECKS} | {"watch/stopped_by": None, "optimizer/skipped_steps": 0}
    return none | {(key if "/" in key else f"watch/{key}"): n for key, n in counts.items()}


def test_what_the_watch_saw_by_arm(tmp_path):
    """Summed over the seeds, those that the watch stopped included."""
    stopped = {"watch/stopped_by": "kl_blowup", "error": "UserError: outer step 3, watch.kl_blowup: ..."}
    runs = [
        ("grpo", 0, fires()),
        ("grpo", 1, fires(truncated=1)),
        ("dash", 0, fires(nonfinite=2, **{"optimizer/skipped_steps": 5})),
        ("dash", 1, fires(kl_blowup=3, nonfinite=1, **{"optimizer/skipped_steps": 1}) | stopped | {"status": "failed"}),
    ]
    for algo, seed, result in runs:
        write_cell(tmp_path / f"{algo}{seed}", [f"algo={algo}", f"seed={seed}"], result=result)
    for seed, fired in ((0, [None, 0, 0, 0]), (1, [None, 0, 1, 2])):
        metrics = pd.read_csv(tmp_path / f"dash{seed}" / "metrics.csv")
        metrics["watch/kl_blowup"] = fired
        metrics.to_csv(tmp_path / f"dash{seed}" / "metrics.csv", index=False)
    document = document_of(tmp_path)
    header = next(b for b in section(document, "watch").blocks if isinstance(b, Table)).header
    assert header == ["arm", "nonfinite", "kl_blowup", "truncated", "optimizer steps skipped"]
    assert rows(document, "watch") == {"grpo": ["0", "0", "1", "0"], "dash": ["3", "3 (first: step 2)", "0", "6"]}
    assert "kl_blowup:  kl/ref_nats_per_token is above a limit." in texts(document, "watch")
    said = texts(document, "summary")
    assert "The watch skipped optimizer steps because a check fired: 6 in dash." in said
    assert "The watch stopped 1 cell: dash, seed 1 by kl_blowup." in said
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert "Checks that fired during training (watch)" in page
    assert "| dash | 3 | 3 (first: step 2) | 0 | 6 |" in markdown


def test_a_watch_that_saw_nothing_and_runs_without_one(tmp_path):
    write_cell(tmp_path / "new" / "a", ["algo=dash", "seed=0"], result=fires())
    document = document_of(tmp_path / "new")
    assert texts(document, "watch") == "No check of the watch fired in any run."
    assert "watch" not in texts(document, "summary")
    write_cell(tmp_path / "old" / "a", ["algo=dash", "seed=0"])
    assert "watch" not in [s.name for s in document_of(tmp_path / "old").sections]
    write_cell(tmp_path / "both" / "a", ["algo=dash", "seed=0"], result=fires(clipped=1))
    write_cell(tmp_path / "both" / "b", ["algo=grpo", "seed=0"])
    assert rows(document_of(tmp_path / "both"), "watch") == {"dash": ["1"]}


def test_cells_that_are_not_done(sweep):
    shutil.rmtree(sweep / "algo=dash,seed=1" / "completions")
    result = sweep / "algo=dash,seed=1" / "result.json"
    result.write_text(json.dumps({"status": "failed", "error": "OutOfMemoryError: <b>|"}))
    (sweep / "algo=dash,seed=2" / "result.json").write_text('{"status": "sto')  # torn: killed while writing
    listed = ["algo=rloo,seed=0", *sorted(p.name for p in sweep.iterdir())]
    cells = [{"folder": name, "overrides": name.split(",")} for name in listed]
    (sweep / "sweep.json").write_text(json.dumps({"cells": cells}))
    document = document_of(sweep)
    facts = dict(document.facts)
    assert (facts["cells done"], facts["failed"], facts["unfinished"], facts["waiting"]) == ("4 of 7", "1", "1", "1")
    assert rows(document, "differences")["dash"][:2] == ["in distribution", "1"]  # one pair is left
    table = section(document, "failures").blocks[0]
    assert [[c.text for c in row][2:] for row in table.rows] == [
        ["waiting", "not started yet"],
        ["failed", "OutOfMemoryError: <b>|"],
        ["unfinished", "no result: still running, or killed"],
    ]
    assert "no accuracy yet: the state of its cells is waiting" in texts(document, "summary")
    assert "3 of 7 cells are not done" in texts(document, "summary")
    page = to_html(document, sweep / "report" / "figures")
    assert "&lt;b&gt;|" in page and "<b>|" not in page
    assert "OutOfMemoryError: &lt;b&gt;\\| |" in to_markdown(document)


def test_one_seed_and_one_arm(tmp_path):
    write_cell(tmp_path / "a", ["algo=dash", "seed=0"])
    document = document_of(tmp_path)
    assert section(document, "differences").title == "Differences from the base model"
    assert "With one seed there is no interval over seeds" in texts(document, "differences")
    assert "one seed, 0.0 to +100.0 over problems" in texts(document, "summary")
    assert rows(document, "arms")["dash"][:2] == ["1", "75.0"]
    assert report.write(load([tmp_path / "a"]), tmp_path / "out").is_file()  # a run alone
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.findall("[^.]*over seeds[^.]*", markdown) == [
        "\n\nWith one seed there is no interval over seeds, no p value and no smallest effect"
    ]
    assert not re.search(r"% \(fraction\)|s \(s\)|tokens \(tokens\)", markdown)
    assert "accuracy in distribution, %, against outer steps: dash ends at 75" in markdown


def test_metrics_that_were_not_logged(sweep):
    gone = ["accuracy/in_dist", "kl/ref_nats_per_token", "reward/mean", "time/elapsed_s"]
    for file in sweep.glob("algo=*/metrics.csv"):
        pd.read_csv(file).drop(columns=gone).to_csv(file, index=False)
    drawn = str(section(document_of(sweep), "curves"))
    assert "curve-steps-accuracy-out_dist" in drawn and "curve-seconds" not in drawn
    assert not [metric for metric in gone if f"-{metric.replace('/', '-')}" in drawn]
