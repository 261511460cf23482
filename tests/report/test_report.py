"""Reports of synthetic sweeps whose numbers were worked by hand. How the page looks: `test_report_page.py`."""

import json
import math
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import composed
from synthetic import write_cell

from dash_exp import report
from dash_exp.commands import cli
from dash_exp.core.errors import UserError
from dash_exp.core.watch import CHECKS
from dash_exp.report import __main__ as command
from dash_exp.report import comparison, controls, figures, paper, sections, words
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Items, Paragraph, Samples, Table, to_html, to_markdown
from dash_exp.results.cells import Results, load
from dash_exp.results.stats import Estimate


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Figures are laid out as ever, but saved as an empty picture: drawing takes most of the time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: path.with_name(f"{path.name}.svg").write_text("<svg/>"))


@pytest.fixture
def sweep(tmp_path):
    """grpo is right on 3 of 4 problems with every seed; dash the same, and on all 4 with seeds 1 and 2, in half of the time."""
    study = {"question": "Which?", "baseline": ["algo=grpo"], "target": None, "paper": None}
    for seed in range(3):
        write_cell(tmp_path / f"algo=grpo,seed={seed}", ["algo=grpo", f"seed={seed}"], settings={"study": study})
        write_cell(
            tmp_path / f"algo=dash,seed={seed}",
            ["algo=dash", f"seed={seed}"],
            in_dist=(1, 1, 1, int(seed > 0)),
            seconds=50.0,
            settings={"study": study},
        )
    return tmp_path


def made(folder, tmp_path=None, **options):
    out = (tmp_path or folder) / "report" / "figures"
    out.mkdir(parents=True, exist_ok=True)
    return sections.document(load([folder]), out, options.get("baseline"), options.get("target"), "now")


def section(document, name):
    return next(s for s in document.sections if s.name == name)


def rows(document, name, which=0):
    """The rows of a table as texts, by their first column; of several with the same one the first."""
    tables = [b for b in section(document, name).blocks if isinstance(b, Table)]
    return {row[0].text: [c.text for c in row[1:]] for row in reversed(tables[which].rows)}


def texts(document, name):
    """What a section says outside its tables."""
    found = []
    for block in section(document, name).blocks:
        found += [block.text] if isinstance(block, Paragraph) else []
        found += [f"{item.text} {item.detail}" for item in block.items] if isinstance(block, Items) else []
    return "\n".join(found)


def warnings(folder):
    return "\n".join(controls.warnings(load([folder])))


# --- numbers -----------------------------------------------------------------------------------------------------------


def test_differences_by_hand(sweep):
    d = comparison.differences(load([sweep]), "grpo", "in_dist")[0]
    # 0, 1/4, 1/4: mean 1/6, sd 0.1443, half-width 4.3027 x 0.1443 / sqrt(3) = 0.3586; t = 2, p = 1 - 2 / sqrt(6) = 0.1835
    assert d.over_seeds.value == pytest.approx(1 / 6)
    assert d.over_seeds.high - d.over_seeds.value == pytest.approx(0.3586, abs=1e-4)
    assert d.p == d.p_holm == pytest.approx(0.1835, abs=1e-4)
    # problem by problem 0, 0, 0, 2/3: the same mean; the fourth is drawn 0 to 3 times in 95% of the draws
    assert d.over_problems.value == pytest.approx(1 / 6)
    assert (d.over_problems.low, d.over_problems.high) == pytest.approx((0.0, 0.5))
    # noncentral t: 3 pairs need 3.26 standard deviations for a power of 80%
    assert d.detectable / 0.1443 == pytest.approx(3.26, abs=0.01)


def test_what_the_report_says_of_it(sweep):
    document = made(sweep)
    assert document.lead == "Which?"
    assert dict(document.facts)["cells done"] == "6 of 6"
    dash = next(i for i in section(document, "summary").blocks[0].items if i.text == "dash").detail
    assert dash.startswith(
        "91.7% in distribution: +16.7 points against grpo (−19.2 to +52.5 over 3 seeds: no difference shown)"
    )
    assert "0.50 times the training time (0.50 to 0.50)" in dash
    assert rows(document, "arms")["grpo"][:3] == ["3", "75.0", "25.0"]
    assert rows(document, "arms")["base model"][1:3] == ["25.0", "25.0"]
    assert rows(document, "arms")["dash"][3:] == ["20 / 20", "50.0 s", "300", "210", "70.0%", "3", "all steps"]
    assert rows(document, "differences", 1)["dash"] == ["3", "0.50", "0.50 to 0.50", "−50.0%"]
    # against the base model grpo gains 0.75 - 0.25 with every seed, so there is an interval without width, and a word on it
    assert rows(document, "differences", 2)["grpo"][1:5] == ["3", "+50.0", "+50.0 to +50.0", "–"]
    assert "every seed gave the very same difference" in texts(document, "differences")
    assert texts(document, "failures") == "Every cell is done."


def test_another_test_set_is_in_the_summary_where_it_differs(tmp_path):
    for seed in range(3):
        for algo, right in (("grpo", 19), ("dash", 10 + seed)):
            out_dist = [1] * right + [0] * (20 - right)
            cell = tmp_path / f"{algo}{seed}"
            write_cell(cell, [f"algo={algo}", f"seed={seed}"], [1, 0] * 10, out_dist, [0] * 20)
    said = next(i.detail for i in section(made(tmp_path, baseline="grpo"), "summary").blocks[0].items if i.text == "dash")
    # -9, -8, -7 of 20: -40 points, sd 5, half-width 4.3027 x 5 / sqrt(3) = 12.4; t = -13.86, p = 0.005
    assert "; out of distribution −40.0 points (−52.4 to −27.6 over 3 seeds: lower, p = 0.005)" in said


def test_time_to_a_target(tmp_path):
    """The first evaluation at or above it; a seed that never gets there is infinitely late."""
    for seed, curve in enumerate([(0.2, 0.5, 0.6, 0.9), (0.2, 0.6, 0.5, 0.9), (0.2, 0.3, 0.3, 0.3)]):
        write_cell(tmp_path / f"dash{seed}", ["algo=dash", f"seed={seed}"], curve=curve, seconds=30)
        never = (0.2, 0.3, 0.3, 0.59 + 0.01 * (seed == 0))
        write_cell(tmp_path / f"grpo{seed}", ["algo=grpo", f"seed={seed}"], curve=never, seconds=30)
    results = load([tmp_path])
    dash, grpo = (comparison.reach(results, arm, 0.6) for arm in ("dash", "grpo"))
    assert (dash.n, dash.reached) == (3, 2)
    # steps 2, 1, never: median 2, after 20 of 30 seconds and 200 tokens
    assert dash.median == {"steps": 2, "seconds": 20, "sampled_tokens": 200, "optimizer_steps": 2}
    assert grpo.reached == 1 and math.isinf(grpo.median["seconds"])
    shown = rows(made(tmp_path, target=0.6), "target")
    assert shown["dash"] == ["2 of 3 seeds", "2", "20.0 s", "200", "2"]
    assert shown["grpo"] == ["1 of 3 seeds", *["not by half"] * 4]
    assert comparison.reach(results, "dash", 0.95).reached == 0


def test_the_target_that_is_derived(sweep):
    target = comparison.choose_target(load([sweep]), "grpo", None)
    assert target.value == pytest.approx(0.25 + 0.95 * 0.5)  # from 0.25 to 0.75
    assert target.why == "95% of the way from the base model to the final accuracy of grpo"
    assert "as given" in comparison.choose_target(load([sweep]), "grpo", 0.9).why
    assert comparison.choose_target(Results([]), None, None) is None


def test_mean_curves_cover_what_all_seeds_cover():
    x, y = comparison.mean_line([(np.array([0.0, 2.0]), np.array([0.0, 2.0])), (np.array([1.0, 3.0]), np.array([3.0, 5.0]))])
    assert x.tolist() == [1.0, 2.0]
    assert y.tolist() == [2.0, 3.0]  # (1 + 3) / 2, (2 + 4) / 2
    assert comparison.mean_line([(np.array([0.0]), np.array([1.0])), (np.array([2.0]), np.array([1.0]))]) is None


def test_phases_and_the_rest(sweep):
    # total 110 = 50 sampling + 25 updating + 10 evaluation + 25 for which no phase accounts
    assert comparison.phases(load([sweep]), "grpo") == {
        "sample": 50, "score": 0, "update": 25, "sync": 0, "eval": 10, "other": 25,
    }  # fmt: skip


def test_pass_at_k_before_and_after(tmp_path):
    for seed, final in enumerate((0.4, 0.6)):
        found = {f"eval/in_dist/pass@{k}/{when}": value for k in (1, 8) for when, value in (("base", 0.2), ("final", final))}
        write_cell(tmp_path / str(seed), ["algo=dash", f"seed={seed}"], result=found)
    document = made(tmp_path)
    table = next(b for b in section(document, "pass-at-k").blocks if isinstance(b, Table))
    assert [[c.text for c in row] for row in table.rows] == [
        ["base model", "in distribution", "20.0", "20.0"],
        ["dash", "in distribution", "50.0", "50.0"],
    ]


def test_beside_the_paper_by_hand(sweep):
    methods = {"grpo": "GRPO", "dash": "DASH", "base": "Base"}
    for file in sweep.glob("*/config.yaml"):
        file.write_text(file.read_text().replace("paper: null", f"paper: {json.dumps({'table': 3, 'methods': methods})}"))
    found = {(c.arm, c.quantity.partition(";")[0]): c for c in paper.changes(load([sweep]), "grpo")}
    time = found["dash", "training time"]
    assert time.by_model == {"0.5B": pytest.approx(6.6 / 38.9 - 1)}  # 38.9 h -> 6.6 h: -83%
    assert time.ours == pytest.approx(-0.5)
    assert found["dash", "MATH"].by_model["0.5B"] == pytest.approx(27.2 / 27.6 - 1)
    assert found["dash", "MATH"].ours == pytest.approx(0.9167 / 0.75 - 1, abs=1e-3)
    assert found[BASE, "GSM8K"].by_model["0.5B"] == pytest.approx(30.3 / 32.8 - 1)
    assert (BASE, "training time") not in found
    table = section(made(sweep), "paper").blocks[1]
    assert ["dash", "DASH", "training time", "−83.0%", "−50.0%"] in [[c.text for c in row] for row in table.rows]


def test_methods_by_the_value_of_a_swept_key(tmp_path):
    for coef in ("0", "0.04"):
        write_cell(tmp_path / coef, ["algo=dash", f"kl.coef={coef}", "seed=0"])
    results = load([tmp_path])
    assert results.arms == ["kl.coef=0", "kl.coef=0.04"]
    methods = {0: "No-KL", 0.04: "DASH (KL 0.04)"}
    assert [paper.method_of(results, arm, methods) for arm in results.arms] == ["No-KL", "DASH (KL 0.04)"]
    assert paper.method_of(results, "kl.coef=0", {"kl.coef=0": "exact", 0: "value"}) == "exact"
    assert paper.method_of(results, "kl.coef=0", {"grpo": "GRPO"}) is None


def test_the_table_of_the_paper_is_whole():
    table = paper.read()
    assert len(table) == 41
    assert sorted(set(table["table"])) == [1, 2, 3, 4, 5, 6]


def test_a_sweep_over_models_has_a_base_model_for_each_arm(tmp_path):
    for model, base in (("tiny", (1, 0, 0, 0)), ("tiny_random", (0, 0, 0, 0))):
        write_cell(tmp_path / model, [f"model={model}", "seed=0"], base=base)
    document = made(tmp_path)
    shown = rows(document, "arms")
    assert shown["base model of model=tiny"][1:3] == ["25.0", "25.0"]
    assert shown["base model of model=tiny_random"][1:3] == ["0.0", "0.0"]
    assert "base model's accuracy" not in texts(document, "summary")
    # each against the model that it started from: 0.75 - 0.25, 0.75 - 0
    assert [d.over_seeds.value for d in comparison.differences(load([tmp_path]), BASE, "in_dist")] == [0.5, 0.75]


def test_numbers_in_words():
    assert [words.times(x) for x in (0.566, 0.0123, 1234.5, 12)] == ["0.57", "0.012", "1,234", "12.00"]
    assert [words.points(x) for x in (-0.002, 0.0, 0.0004, -0.0004, 0.12)] == ["−0.2", "0.0", "0.0", "0.0", "+12.0"]
    assert [words.seconds(x) for x in (12.34, 154, 5000)] == ["12.3 s", "2:34", "1:23:20"]
    assert [words.probability(p) for p in (None, 0.0001, 0.0312)] == ["–", "< 0.001", "0.031"]
    cut = words.unit(Estimate(0.9, -0.1, 1.2, 3))
    assert words.span(cut, words.percent) == "0.0 to 100.0"


def test_phases_that_overlapped(tmp_path):
    write_cell(tmp_path / "a", ["algo=dash", "seed=0"], result={"time/sample_s": 90.0, "time/update_s": 90.0})
    assert "Sampling and training overlapped in dash" in texts(made(tmp_path), "phases")


# --- the watch ---------------------------------------------------------------------------------------------------------


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
    document = made(tmp_path)
    header = next(b for b in section(document, "watch").blocks if isinstance(b, Table)).header
    assert header == ["arm", "nonfinite", "kl_blowup", "truncated", "optimizer steps left out"]
    assert rows(document, "watch") == {"grpo": ["0", "0", "1", "0"], "dash": ["3", "3", "0", "6"]}
    assert "kl_blowup:  kl/ref_nats_per_token is above its limit." in texts(document, "watch")
    said = texts(document, "summary")
    assert "Optimizer steps were left out because a check of the watch fired: 6 in dash." in said
    assert "The watch stopped 1 cell: dash, seed 1 by kl_blowup." in said
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert "What the watch saw" in page
    assert "| dash | 3 | 3 | 0 | 6 |" in markdown


def test_a_watch_that_saw_nothing_and_runs_without_one(tmp_path):
    write_cell(tmp_path / "new" / "a", ["algo=dash", "seed=0"], result=fires())
    document = made(tmp_path / "new")
    assert texts(document, "watch") == "No check of the watch fired in any run."
    assert "watch" not in texts(document, "summary")
    write_cell(tmp_path / "old" / "a", ["algo=dash", "seed=0"])
    assert "watch" not in [s.name for s in made(tmp_path / "old").sections]
    write_cell(tmp_path / "both" / "a", ["algo=dash", "seed=0"], result=fires(clipped=1))
    write_cell(tmp_path / "both" / "b", ["algo=grpo", "seed=0"])
    assert rows(made(tmp_path / "both"), "watch") == {"dash": ["1"]}


# --- what is missing ---------------------------------------------------------------------------------------------------


def test_cells_that_are_not_done(sweep):
    shutil.rmtree(sweep / "algo=dash,seed=1" / "completions")
    result = sweep / "algo=dash,seed=1" / "result.json"
    result.write_text(json.dumps({"status": "failed", "error": "OutOfMemoryError: <b>|"}))
    (sweep / "algo=dash,seed=2" / "result.json").write_text('{"status": "sto')  # torn: killed while writing
    listed = ["algo=rloo,seed=0", *sorted(p.name for p in sweep.iterdir())]
    cells = [{"folder": name, "overrides": name.split(",")} for name in listed]
    (sweep / "sweep.json").write_text(json.dumps({"cells": cells}))
    document = made(sweep)
    facts = dict(document.facts)
    assert (facts["cells done"], facts["failed"], facts["unfinished"], facts["waiting"]) == ("4 of 7", "1", "1", "1")
    assert rows(document, "differences")["dash"][:2] == ["in distribution", "1"]  # one pair is left
    table = section(document, "failures").blocks[0]
    assert [[c.text for c in row][2:] for row in table.rows] == [
        ["waiting", "has not started"],
        ["failed", "OutOfMemoryError: <b>|"],
        ["unfinished", "no result: still running, or killed"],
    ]
    assert "has no accuracy yet: its cells are waiting" in texts(document, "summary")
    assert "3 of 7 cells are not done" in texts(document, "summary")
    page = to_html(document, sweep / "report" / "figures")
    assert "&lt;b&gt;|" in page and "<b>|" not in page
    assert "OutOfMemoryError: &lt;b&gt;\\| |" in to_markdown(document)


def test_one_seed_and_one_arm(tmp_path):
    write_cell(tmp_path / "a", ["algo=dash", "seed=0"])
    document = made(tmp_path)
    assert section(document, "differences").title == "Differences from the base model"
    assert "With one seed there is no interval over seeds" in texts(document, "differences")
    assert "one seed, 0.0 to +100.0 over problems" in texts(document, "summary")
    assert rows(document, "arms")["dash"][:2] == ["1", "75.0"]
    assert report.write(load([tmp_path / "a"]), tmp_path / "out").is_file()  # a run alone


def test_nothing_but_waiting_cells(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": [{"folder": "a", "overrides": ["algo=dash"]}]}))
    page = report.write(load([tmp_path]), tmp_path / "report")
    assert "has not started" in page.read_text()


@pytest.mark.parametrize("lost", ["metrics.csv", "problems.csv", "completions", ".hydra", "config.yaml", "result.json"])
def test_a_report_of_what_is_left(sweep, lost):
    for cell in sweep.glob("algo=*"):
        shutil.rmtree(cell / lost) if (cell / lost).is_dir() else (cell / lost).unlink()
    assert report.write(load([sweep]), sweep / "report").is_file()
    if lost in ("metrics.csv", "problems.csv", "config.yaml"):
        assert f"{lost} is missing or unreadable in 6 done cells" in warnings(sweep)


def test_a_torn_file_is_as_good_as_none(sweep):
    (sweep / "algo=dash,seed=0" / "metrics.csv").write_bytes(b"step,a\n1,2\n1,2,3,4\n")
    (sweep / "algo=dash,seed=0" / "problems.csv").write_bytes(b"\xff\xfe\x00")
    said = warnings(sweep)
    assert "metrics.csv is missing or unreadable in 1 done cell" in said
    assert "problems.csv is missing or unreadable in 1 done cell" in said


def test_metrics_that_were_not_logged(sweep):
    gone = ["accuracy/in_dist", "kl/ref_nats_per_token", "reward/mean", "time/elapsed_s"]
    for file in sweep.glob("algo=*/metrics.csv"):
        pd.read_csv(file).drop(columns=gone).to_csv(file, index=False)
    drawn = str(section(made(sweep), "curves"))
    assert "curve-steps-accuracy-out_dist" in drawn and "curve-seconds" not in drawn
    assert not [metric for metric in gone if f"-{metric.replace('/', '-')}" in drawn]


def test_seeds_that_only_one_arm_has(sweep):
    shutil.rmtree(sweep / "algo=grpo,seed=0")
    assert "different seeds done (0, 1, 2 in dash; 1, 2 in grpo)" in warnings(sweep)
    d = comparison.differences(load([sweep]), "grpo", "in_dist")[0]
    # by seed, not by place: 1 - 3/4 with seeds 1 and 2
    assert (d.over_seeds.n, d.over_seeds.value, d.over_problems.value) == (2, 0.25, 0.25)


# --- what differed -----------------------------------------------------------------------------------------------------


def test_swept_settings_do_not_warn(sweep):
    differs = controls.differing(load([sweep]))
    assert differs["filter.threshold"] == {"grpo": "-", "dash": "0.1"}
    assert "batch.sample_prompts" in differs
    assert warnings(sweep) == ""
    assert "filter.threshold" in rows(made(sweep), "settings")


def test_anything_else_that_differs_warns(sweep):
    for seed in range(3):
        shutil.rmtree(sweep / f"algo=dash,seed={seed}")
        write_cell(sweep / f"algo=dash,seed={seed}", ["algo=dash", f"seed={seed}"], settings={"clip_norm": 5.0})
    said = warnings(sweep)
    assert "More differs than was swept: clip_norm (" in said
    assert "5.0 in dash" in said and "1.0 in grpo" in said
    assert said.count("More differs") == 1
    document = made(sweep)
    assert "clip_norm" in texts(document, "summary") and "clip_norm" in texts(document, "settings")


def test_a_setting_that_differs_between_seeds_warns(tmp_path):
    for seed in range(2):
        write_cell(tmp_path / str(seed), ["algo=dash", f"seed={seed}"], settings={"clip_norm": 1.0 + seed})
    assert "clip_norm (1.0 | 2.0 in dash)" in warnings(tmp_path)


def test_matched_budgets_do_not_warn(tmp_path):
    for algo, limit in (("grpo", None), ("dash", 7)):
        budget = {"seconds": limit, "sampled_tokens": None, "optimizer_steps": None, "match": "seconds"}
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], settings={"budget": budget})
    assert "budget" not in warnings(tmp_path)


def test_what_cannot_be_composed_is_said(tmp_path):
    for algo in ("grpo", "mine"):
        write_cell(tmp_path / algo, ["algo=grpo", "seed=0"], settings={"clip_norm": 1.0 + (algo == "mine")})
    (tmp_path / "mine" / ".hydra" / "overrides.yaml").write_text("[algo=mine, seed=0]")
    said = warnings(tmp_path)
    assert "could not be checked for algo=mine" in said
    assert "clip_norm" in said


def test_composing_leaves_a_running_hydra_alone(sweep):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(cli.conf_folder()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert warnings(sweep) == ""
        assert GlobalHydra.instance().hydra is before
    assert composed("algo=grpo").algo.name == "grpo"


def test_other_machines_and_failed_gradings(sweep):
    for seed, changed in enumerate(({"git": "b" * 40}, {"device": "Some GPU"}, {"device": "Some CPU, 4 thread(s)"})):
        file = sweep / f"algo=dash,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed | {"score/timeouts": 2, "sizes/parameters": 2000}))
    said = warnings(sweep)
    assert "different git revisions: " in said and "bbbbbbbbbbbb (1 cell)" in said
    assert "different devices" in said and "Some GPU (1 cell)" in said
    assert "different numbers of torch threads" in said
    assert "6 time-outs in training" in said
    assert "parameters differs between cells" in said and "files have changed" in said


# --- text that a model wrote -------------------------------------------------------------------------------------------


def test_completions_side_by_side_and_harmless(tmp_path):
    hostile = "</pre><script>alert(1)</script>\n```\n# no heading | \x00 \ud800 {{ 7 * 7 }}"
    for algo in ("grpo", "dash"):
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], completion=hostile)
    document = made(tmp_path)
    samples = next(b for b in section(document, "samples").blocks if isinstance(b, Samples))
    assert [s.arm.text for s in samples.samples] == ["dash", "grpo"]
    assert [facts for facts, _ in samples.samples[0].completions] == [
        "reward 1.00, advantage +0.50, kept",
        "reward 0.00, advantage −0.05, dropped",
    ]
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert "<script" not in page and "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page
    assert "\n    # no heading" in markdown and "\n    ```\n" in markdown
    assert "\x00" not in page + markdown


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(sweep)])
    command.main()
    assert "2 arm(s), 6 of 6 cell(s) done" in capsys.readouterr().out
    first = (sweep / "report" / "cells.csv").read_text()
    assert first.splitlines()[0].startswith("cell,arm,algo,seed,status,error")
    assert len(first.splitlines()) == 7
    command.main()  # over its own files, and the folder of the report is no cell
    assert (sweep / "report" / "cells.csv").read_text() == first
    assert {p.name for p in (sweep / "report").iterdir()} == {"report.html", "report.md", "figures", "cells.csv"}


def test_folders_with_equals_signs_are_folders(sweep):
    cell = str(sweep / "algo=grpo,seed=0")
    assert command.parse([cell, "out=x", "target=0.5"]) == command.Command([cell], command.Path("x"), target=0.5)
    assert command.parse([cell]).out == sweep / "algo=grpo,seed=0" / "report"
    assert command.parse([cell, cell]).out == command.Path("report")
    assert command.parse(["wandb:me/p/g", "--wandb", "me/p"]) == command.Command(
        ["wandb:me/p/g"], command.Path("report"), wandb="me/p"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["out=x"], "DIR: is missing"),
        (["a", "target=2"], "target=2: is no accuracy"),
        (["a", "target=x"], "target=x: is no accuracy"),
        (["a", "--wandb"], "--wandb: is not of the form"),
        (["a", "--wandb", "me"], "--wandb me: is not of the form"),
        (["a", "--html"], "--html: is not known"),
        (["a", "basline=x"], "basline=x: is no folder and no option"),
    ],
)
def test_mistakes_on_the_command_line(arguments, says):
    with pytest.raises(UserError) as error:
        command.parse(arguments)
    assert str(error.value).startswith(says)


def test_the_baseline_by_name(tmp_path):
    for algo in ("grpo", "dash"):
        for coef in ("0", "0.04"):
            write_cell(tmp_path / f"{algo}{coef}", [f"algo={algo}", f"kl.coef={coef}", "seed=0"])
    results = load([tmp_path])
    assert comparison.choose_baseline(results, None) == "dash, kl.coef=0"
    assert comparison.choose_baseline(results, "grpo, kl.coef=0.04") == "grpo, kl.coef=0.04"
    assert comparison.choose_baseline(results, BASE) == BASE
    with pytest.raises(UserError, match="is the beginning of several arms"):
        comparison.choose_baseline(results, "grpo")
    with pytest.raises(UserError, match="baseline=sft: is no arm"):
        comparison.choose_baseline(results, "sft")


def test_arms_of_several_models_are_each_compared_with_the_baseline_of_their_own(tmp_path):
    """One model ends higher; PPO adds nothing to either. Against the other model's DASH it would seem to add a half."""
    study = {"study": {"baseline": ["algo=dash"]}}
    for model, right in {"tiny": [1, 1, 0, 0], "tiny_random": [1, 1, 1, 1]}.items():
        for algo in ("dash", "ppo_mini"):
            for seed in (0, 1):
                overrides = [f"model={model}", f"algo={algo}", f"seed={seed}"]
                write_cell(tmp_path / ",".join(overrides), overrides, in_dist=right, settings=study)
    results = load([tmp_path])
    found = comparison.differences(results, results.baseline, "in_dist")
    assert {d.arm: d.over_seeds.value for d in found} == {"model=tiny, ppo_mini": 0.0, "model=tiny_random, ppo_mini": 0.0}
    text = report.write(results, tmp_path / "report").with_name("report.md").read_text()
    assert "against algo=dash with the same other settings" in text
    assert "points against model=tiny\\_random, dash" in text


def test_arms_that_are_named_by_a_number_of_kl_are_explained(tmp_path):
    """`kl='0.04',linear`: the quotes are gone, and Hydra alone would refuse the number."""
    for kl, overrides in (("0.04", ["kl=0.04"]), ("linear", ["kl=linear"])):
        write_cell(tmp_path / kl, ["kl.coef=0.04"] if kl == "0.04" else overrides)
        (tmp_path / kl / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    assert controls.explained(load([tmp_path]))[1] == []
    assert not controls.unexplained(load([tmp_path]))


def test_an_arm_that_learns_from_written_traces_has_no_completions_of_its_own(tmp_path):
    for algo in ("dash", "sft_h"):
        write_cell(tmp_path / algo, [f"algo={algo}"])
    results = load([tmp_path])
    assert [comparison.written(results, arm) for arm in ("dash", "sft_h")] == [False, True]
    assert comparison.curve(results, "dash", "reward/mean", "steps") is not None
    assert comparison.curve(results, "sft_h", "reward/mean", "steps") is None
    assert comparison.curve(results, "sft_h", "accuracy/in_dist", "steps") is not None
    assert comparison.curve(results, "sft_h", "accuracy/in_dist", "sampled_tokens") is None
    text = report.write(results, tmp_path / "report").with_name("report.md").read_text()
    assert "learned from written traces" in text
    assert "written for it; reward" in text


def test_what_wandb_gets_of_a_report_has_no_figures(sweep):
    text = command.brief(report.write(load([sweep]), sweep / "report").with_name("report.md").read_text())
    assert text.startswith("### Summary")
    assert "### Differences from grpo" in text
    assert "](figures/" not in text
    assert "# " not in text.replace("### ", "")
