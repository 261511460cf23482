"""The sections of a report, one file each: the numbers of `comparison` as sentences, tables and figures.

Every file has a `section(context)`, which writes its figures and returns None if there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dash_exp.report import comparison, figures
from dash_exp.report.document import Document, Section
from dash_exp.report.sections import (
    arms,
    curves,
    differences,
    paper,
    pass_at_k,
    phases,
    samples,
    settings,
    status,
    summary,
    target,
    verdicts,
)
from dash_exp.report.sections.context import Context
from dash_exp.results.cells import STATUSES, Results

SECTIONS: tuple[Callable[[Context], Section | None], ...] = (
    verdicts.section,
    summary.section,
    arms.section,
    differences.section,
    target.section,
    phases.section,
    curves.section,
    pass_at_k.section,
    paper.section,
    settings.section,
    samples.section,
    status.watch,
    status.not_done,
)


def document(results: Results, folder: Path, baseline: str | None, target_accuracy: float | None, date: str) -> Document:
    """The whole report. Figures are written into `folder`. Raises UserError if the baseline is not the name of an arm."""
    context = context_of(results, folder, baseline, target_accuracy)
    looks = context.looks
    figures.legend({arm: looks[arm] for arm in results.arms}, folder / "legend")
    return Document(
        title=title(results),
        lead=lead(results),
        created=f"Created {date}. Intervals are 95% intervals; accuracy is greedy, in percent.",
        facts=facts(context),
        sections=[found for section in SECTIONS if (found := section(context)) is not None],
        legend=[(arm, *looks[arm]) for arm in results.arms],
    )


def context_of(results: Results, folder: Path, baseline: str | None, target_accuracy: float | None) -> Context:
    """What the sections are built from. Raises UserError if the baseline is not the name of an arm."""
    chosen = comparison.choose_baseline(results, baseline)
    return Context(
        results=results,
        folder=folder,
        baseline=chosen,
        target=comparison.choose_target(results, chosen, target_accuracy),
        tests=results.tests,
        looks=figures.styles(results.arms, chosen),
    )


def title(results: Results) -> str:
    """The names of the runs, in their order."""
    names = dict.fromkeys(str(cell.config["name"]) for cell in results.cells if cell.config.get("name"))
    return ", ".join(names) or "comparison"


def lead(results: Results) -> str:
    """The question of the sweep."""
    return results.study.get("question") or f"Accuracy and cost of {len(results.arms)} arms"


def facts(c: Context) -> list[tuple[str, str]]:
    """The figures at the top of the page: how many cells, arms, seeds and test problems there are."""
    count = {status: sum(cell.status == status for cell in c.results.cells) for status in STATUSES}
    seeds = {seed for arm in c.results.arms for seed in comparison.by_seed(c.results, arm)}
    tested = [[len(comparison.solved(cell, test, "final")) for cell in c.results.cells] for test in c.tests]
    ranges = [sorted({count for count in counts if count}) for counts in tested]
    problems = " + ".join(" to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1]))) for found in ranges if found)
    found = [("cells done", f"{count['done']} of {len(c.results.cells)}"), ("failed", str(count["failed"]))]
    found += [(status, str(count[status])) for status in ("stopped", "unfinished", "waiting") if count[status]]
    found += [("arms", str(len(c.results.arms))), ("seeds", str(len(seeds)))]
    return [*found, ("test problems", problems)] if problems else found
