"""The two forms of a report."""

from dataclasses import replace

import pytest
from reports import document_of, section
from synthetic import write_cell

from dash_exp.report.document import Samples, to_html, to_markdown

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
