"""The page of questions: verdicts of published reports, and what was not run yet."""

import json

import publish
import yaml
from conftest import ROOT
from questions import ANSWERS, RESULTS, Published, questions_page
from synthetic import write_cell

from dash_exp.results.cells import load

CLAIMS = [
    {"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "faster", "text": "dash_exp saves time"},
    {"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "faster", "ratio": 0.1},
]


def write_sweep(folder, claims, *algorithms):
    """A published sweep of two seeds and the arms grpo and dash, of which only those given are done."""
    sweep = folder / "sweep"
    cells = [[f"algo={algo}", f"seed={seed}"] for algo in ("grpo", "dash") for seed in (0, 1)]
    for overrides in cells:
        if overrides[0].removeprefix("algo=") in algorithms:
            seconds = {"algo=grpo": 100.0, "algo=dash": 50.0}[overrides[0]] + int(overrides[1][-1])
            write_cell(sweep / ",".join(overrides), overrides, seconds=seconds)
    listed = [{"folder": ",".join(overrides), "overrides": overrides} for overrides in cells]
    (sweep / "sweep.json").write_text(json.dumps({"claims": claims, "cells": listed}))
    return sweep


def published(folder, name, *sweep):
    made = write_sweep(folder / f"{name}-run", *sweep)
    publish.publish(load([made]), made, folder / name)


def section(page, name):
    return page.split(f"## {name} ")[1].split("\n## ")[0]


def test_verdicts_and_what_is_not_run_yet(tmp_path):
    published(tmp_path, "first", CLAIMS, "grpo", "dash")
    published(tmp_path, "first-smollm2", CLAIMS, "grpo")
    published(tmp_path, "second-smollm2", None, "grpo", "dash")
    sentences = {"second-smollm2": "The second one."}
    page = questions_page({"first": "Is dash_exp faster?", "second": "Which?", "third": "What?"}, tmp_path, sentences)
    overview = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in page.splitlines() if line.startswith("| [")
    ]
    assert overview == [
        ["[`first`](#first)", "Is `dash_exp` faster?", "1 supported, 1 contradicted", "2 undecided (2 of 4 cells done)"],
        ["[`second`](#second)", "Which?", "not run yet", "no claims"],
        ["[`third`](#third)", "What?", "not run yet", "not run yet"],
    ]
    first = section(page, "first")
    assert "**Embedded model:** published; its sentence in `docs/answers.yaml` is not written yet." in first
    assert "\n\n4 of 4 cells done, 1 supported, 1 contradicted. [Report](results/first/report.md)" in first
    # 50/100 and 51/101 seconds: logarithms -0.693 and -0.683, so exp(-0.688 +- 6.31 * 0.0049)
    assert (
        "| supported | `dash_exp` saves time | dash takes 0.50 times the training time of grpo (0.49 to 0.52, 2 seeds) |"
        in first
    )
    assert "| contradicted | training time of dash is below 0.10 times that of grpo | dash takes 0.50 times " in first
    assert "](results/first/figures/tradeoff-in_dist.svg)" in first
    assert "\n\n2 of 4 cells done, 2 undecided. [Report](results/first-smollm2/report.md)" in first
    assert "not judged: no seed is done in both" in first
    second = section(page, "second")
    assert "**Embedded model:** not run yet." in second
    assert "**SmolLM2-135M:** The second one.\n\n![" in second
    assert ".svg)\n\n4 of 4 cells done, no claims. [Report](results/second-smollm2/report.md)" in second
    assert "| verdict |" not in second
    assert section(page, "third").count("not run yet.") == 2


def test_each_published_report_has_its_answer_and_there_is_no_other():
    answers = yaml.safe_load(ANSWERS.read_text(encoding="utf-8"))
    assert sorted(answers) == sorted(file.parent.name for file in RESULTS.glob("*/report.md"))
    assert [name for name, sentence in answers.items() if not sentence.endswith(".")] == []


def test_each_published_report_is_on_the_page_with_a_figure_that_is_there():
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    reports = [file.parent for file in RESULTS.glob("*/report.md")]
    assert len(reports) >= 4
    for folder in reports:
        assert f"[Report](results/{folder.name}/report.md)" in page
        figure = Published(folder).figure
        assert figure in page
        assert (ROOT / "docs" / figure.rpartition("](")[2].rstrip(")")).is_file()


def test_reports_are_kept_without_their_pages():
    assert [
        file for file in RESULTS.rglob("*") if file.suffix in (".html", ".png") and (file.parent / "report.md").is_file()
    ] == []
