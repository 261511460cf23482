"""The two forms of a report."""

import json
import re
from dataclasses import replace

import pytest
from reports import document_of, section
from synthetic import write_cell

from dash_exp.report.document import Document, Figure, Samples, Section, Tabs, to_html, to_markdown

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_completions_side_by_side_and_harmless(tmp_path):
    hostile = "</pre><script>alert(1)</script>\n```\n# no heading | \x00 \ud800 {{ 7 * 7 }}"
    for algo in ("grpo", "dash"):
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], completion=hostile)
    document = document_of(tmp_path)
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


def test_a_problem_without_an_answer(tmp_path):
    for algo in ("grpo", "dash"):
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"])
    document = document_of(tmp_path)
    blocks = section(document, "samples").blocks
    blocks[:] = [replace(b, answer=answer) for b in blocks if isinstance(b, Samples) for answer in ("", "7")]
    page, markdown = to_html(document, tmp_path / "report" / "figures"), to_markdown(document)
    assert ">Problem</span>" in page and ">Problem, answer 7</span>" in page
    assert "\nProblem:\n" in markdown and "\nProblem (answer 7):\n" in markdown


def test_wrong_completions_that_a_sum_of_rewards_pays_come_first(tmp_path):
    """Of three problems in two arms: the one that both arms pay wrong, then the one of one arm; of these the best paid."""
    dash, grpo = (
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], settings={"reward": {"correct": "right"}})
        for algo in ("dash", "grpo")
    )
    completions = {  # problem: (reward, reward/right) of each completion
        dash: {"none": [(1.0, 1.0), (0.0, 0.0)], "one": [(0.0, 0.0), (0.0, 0.0)], "both": [(0.2, 0.0), (1.0, 1.0), (0.5, 0.0)]},
        grpo: {"none": [(1.0, 1.0), (1.5, 1.0)], "one": [(1.0, 1.0), (0.5, 0.0)], "both": [(0.0, 0.0), (0.3, 0.0)]},
    }
    for folder, of_problem in completions.items():
        [file] = (folder / "completions").iterdir()
        records = [
            {"problem": problem, "prompt": problem, "completion": "c", "reward": reward, "reward/right": right}
            for problem, rewards in of_problem.items()
            for reward, right in rewards
        ]
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    document = document_of(tmp_path)
    note, *blocks = section(document, "samples").blocks
    assert note.text.endswith("Wrong completions that have a reward come first.")
    assert [block.problem for block in blocks] == ["both", "one", "none"]
    shown = [[facts for facts, _ in arm.completions] for block in blocks for arm in block.samples]
    assert shown == [
        ["wrong, but reward 0.50 (right 0.00)", "reward 0.20 (right 0.00)"],
        ["wrong, but reward 0.30 (right 0.00)", "reward 0.00 (right 0.00)"],
        ["reward 0.00 (right 0.00)", "reward 0.00 (right 0.00)"],
        ["wrong, but reward 0.50 (right 0.00)", "reward 1.00 (right 1.00)"],
        ["reward 1.00 (right 1.00)", "reward 0.00 (right 0.00)"],
        ["reward 1.00 (right 1.00)", "reward 1.50 (right 1.00)"],
    ]


def test_markdown_has_the_first_tab_whole_and_the_first_figure_of_the_others():
    tabs = Tabs(
        "axis", [(axis, [Figure(f"{axis}-a", "a"), Figure(f"{axis}-b", "b")], "") for axis in ("steps", "seconds", "tokens")]
    )
    page = to_markdown(Document("t", "l", "c", [], [Section("curves", "Curves", "Curves", [tabs])]))
    assert re.findall(r"figures/([a-z-]+)\.svg", page) == ["legend", "steps-a", "steps-b", "seconds-a", "tokens-a"]
    assert [line for line in page.splitlines() if line.startswith(("**Against", "The other"))] == [
        *(f"**Against {axis}** " for axis in ("steps", "seconds", "tokens")),
        "The other curves against these are in the HTML page that is written with this one.",
    ]
