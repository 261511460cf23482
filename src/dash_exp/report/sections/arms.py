"""Accuracy and cost of each arm and of the base model, as one table."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.report import comparison
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Cell, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import (
    Show,
    percent,
    seconds,
    span,
    test_label,
    tokens,
    unit,
    whole,
)
from dash_exp.results.stats import Estimate


def accuracy(e: Estimate | None) -> Cell:
    """A mean with its t interval, which is cut at 0 and 100%. A dash if there is no mean."""
    if e is None:
        return Cell("–")
    return Cell(percent(e.value), "" if e.low is None or e.high is None else span(unit(e), percent))


def section(c: Context) -> Section:
    """One row per arm, the base model first."""
    header = ["arm", "seeds", *(f"{test_label(t)}, %" for t in c.tests), "length", "training time"]
    header += ["tokens sampled", "tokens trained", "kept", "outer steps", "ended by"]
    rows = [base_row(c, c.named(BASE, "base model"), None)]
    if comparison.several_models(c.results):
        rows = [base_row(c, c.named(BASE, f"base model of {arm}"), arm) for arm in c.results.arms]
    for arm in c.results.arms:
        done = c.results.of_arm(arm)
        row = [c.named(arm), Cell(str(len(comparison.by_seed(c.results, arm))))]
        row += [accuracy(comparison.over_seeds(c.results, arm, f"accuracy/{t}/final")) for t in c.tests]
        row.append(lengths([comparison.over_seeds(c.results, arm, f"eval/{t}/length/mean_tokens/final") for t in c.tests]))
        row.append(mean(c, arm, "time/elapsed_s", seconds))
        own = not comparison.learns_from_traces(c.results, arm)
        row += [mean(c, arm, "tokens/sampled", whole) if own else Cell("–"), mean(c, arm, "tokens/trained", whole)]
        row += [mean(c, arm, "kept", lambda x: f"{percent(x)}%") if own else Cell("–"), mean(c, arm, "steps", tokens)]
        stops = dict.fromkeys(str(cell.result.get("stopped_by") or "all steps").replace("_", " ") for cell in done)
        rows.append([*row, Cell(", ".join(stops) or "–")])
    means = "Means over seeds. Below each accuracy is its interval over seeds, cut at 0 and 100. " if c.several_seeds else ""
    note = (
        f"{means}Training time does not include evaluation. Length is the mean number of tokens of the greedy completions, one "
        "number for each test set."
    )
    if any(comparison.learns_from_traces(c.results, arm) for arm in c.results.arms):
        note += " An arm that learns from written traces does not sample or drop completions."
    return Section("arms", "Arms", "Accuracy and cost of each arm", [Paragraph(note), Table(header, rows)])


def base_row(c: Context, name: Cell, arm: str | None) -> list[Cell]:
    """Accuracy and length of the base model: of all arms, or the one that a given arm started from."""
    found = [comparison.of_base(c.results, f"accuracy/{t}", arm) for t in c.tests]
    length = lengths([comparison.of_base(c.results, f"eval/{t}/length/mean_tokens", arm) for t in c.tests])
    return [name, Cell(""), *(Cell("–" if e is None else percent(e.value)) for e in found), length, *[Cell("")] * 6]


def lengths(found: Sequence[Estimate | None]) -> Cell:
    """Mean tokens of the greedy completions, one number for each test set."""
    return Cell(" / ".join("–" if e is None else tokens(e.value) for e in found))


def mean(c: Context, arm: str, key: str, show: Show) -> Cell:
    """The mean of one number over the seeds of an arm."""
    found = comparison.over_seeds(c.results, arm, key)
    return Cell("–" if found is None else show(found.value))
