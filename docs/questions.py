"""The page of questions: what each sweep asks, and what its published results say. `generate.py` writes it.

Of a sweep NAME it reads docs/results/NAME (the embedded model) and docs/results/NAME-smollm2, as `publish.py` writes them, and
the sentences of answers.yaml.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from writing import IMAGE, WRITTEN, page, prose, table

RESULTS = Path(__file__).parent / "results"
ANSWERS = Path(__file__).parent / "answers.yaml"
NO_SENTENCE = "published; its sentence in docs/answers.yaml is not written yet."
SCALES = {"": "embedded model", "-smollm2": "SmolLM2-135M"}  # by the end of the folder's name
WORDS = ("supported", "contradicted", "undecided")
FIGURES = ("tradeoff-in_dist", "phases")  # the first one that the report has is shown
OF_SWEEP = {  # before these
    "batch_sizes": "phases",
    "gradient_filtering": "curve-steps-reward-mean",
    "kl": "curve-steps-reward-mean",
    "long_run": "curve-steps-accuracy-in_dist",
    "pass_at_k": "pass_at_k-in_dist",
    "rewards": "curve-steps-accuracy-in_dist",
    "staleness": "phases",
}
# What a sweep would measure there is not what it asks.
NOT_THERE = {(sweep, ""): "not run: the embedded model writes no programs" for sweep in ("efficiency_code", "sft_vs_rl_code")}


@dataclass(frozen=True)
class Published:
    """A published report: a folder in docs/results."""

    folder: Path

    @cached_property
    def verdicts(self) -> list[dict[str, str]]:
        """The rows of `claims.csv`; [] where the sweep claims nothing."""
        return rows(self.folder / "claims.csv")

    @cached_property
    def statuses(self) -> list[str]:
        """The status of each cell."""
        return [row["status"] for row in rows(self.folder / "cells.csv")]

    @property
    def cells(self) -> str:
        """`4 of 9 cells done`"""
        return f"{self.statuses.count('done')} of {len(self.statuses)} cells done"

    @property
    def counts(self) -> str:
        """`1 supported, 2 undecided`"""
        words = [row["verdict"] for row in self.verdicts]
        return ", ".join(f"{words.count(word)} {word}" for word in WORDS if word in words) or "no claims"

    @property
    def link(self) -> str:
        """Where the report is, from the page of questions."""
        return f"results/{self.folder.name}/report.md"

    @property
    def figure(self) -> str:
        """A figure of the report with its description, "" where it has none."""
        report = (self.folder / "report.md").read_text(encoding="utf-8")
        found = {image["name"]: image["alt"] for image in IMAGE.finditer(report) if image["name"] != "legend"}
        wanted = OF_SWEEP.get(self.folder.name.removesuffix("-smollm2"), "")
        name = next((name for name in (wanted, *FIGURES, *found) if name in found), None)
        return f"![{found[name]}](results/{self.folder.name}/figures/{name}.svg)" if name else ""


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] if there is none."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def questions_page(questions: Mapping[str, str], results: Path = RESULTS, sentences: Mapping[str, str] | None = None) -> str:
    """Every sweep with its question: the verdicts in numbers, then each published result.

    `questions`: by the sweep's name. `sentences`: the answers, by the folder in `results`; None: those of answers.yaml.
    """
    sentences = yaml.safe_load(ANSWERS.read_text(encoding="utf-8")) if sentences is None else sentences
    answers = {sweep: {end: published(results / f"{sweep}{end}") for end in SCALES} for sweep in questions}
    overview = [
        [f"[`{sweep}`](#{sweep})", prose(question), *(in_numbers(sweep, end, answers[sweep][end]) for end in SCALES)]
        for sweep, question in questions.items()
    ]
    parts = [
        WRITTEN.format("sweeps/ and docs/results/"),
        "# Questions and verdicts",
        "What each file of `sweeps/` asks, and what the published runs of it say so far: on the embedded model, and with "
        "`+scale=smollm2` on SmolLM2-135M. A claim is *supported* where its whole 90% interval is inside of what is claimed, "
        "*contradicted* where it is outside, else *undecided* "
        "([how to read them](how-to/sweeps-and-reports.md#claims)). What each sweep runs: [Sweeps](reference/sweeps.md).",
        table(["sweep", "question", *SCALES.values()], overview),
    ]
    for sweep, question in questions.items():
        parts += [f"## {sweep} {{ #{sweep} }}", prose(question)]
        for end, answer in answers[sweep].items():
            name = SCALES[end][0].upper() + SCALES[end][1:]
            sentence = f"{not_run(sweep, end)}." if answer is None else sentences.get(f"{sweep}{end}", NO_SENTENCE)
            parts.append(f"**{name}:** {prose(sentence)}")
            parts += [] if answer is None else answered(answer)
    return page(parts)


def published(folder: Path) -> Published | None:
    """The report in a folder, None if there is none."""
    return Published(folder) if (folder / "report.md").is_file() else None


def not_run(sweep: str, end: str) -> str:
    """Why there is no result."""
    return NOT_THERE.get((sweep, end), "not run yet")


def in_numbers(sweep: str, end: str, answer: Published | None) -> str:
    """`3 supported, 1 undecided`, with the number of cells where some are not done."""
    if answer is None:
        return not_run(sweep, end)
    return f"{answer.counts}{'' if set(answer.statuses) == {'done'} else f' ({answer.cells})'}"


def answered(answer: Published) -> list[str]:
    """A figure of a published result, the link to its report, and its verdicts."""
    parts = [answer.figure] if answer.figure else []
    parts.append(f"{answer.cells}, {answer.counts}. [Report]({answer.link})")
    if answer.verdicts:
        found = [[row["verdict"], prose(row["claim"]), prose(row["found"])] for row in answer.verdicts]
        parts.append(table(["verdict", "claim", "found"], found))
    return parts
