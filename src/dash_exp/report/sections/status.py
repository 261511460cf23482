"""The state of the runs: checks of the watch that fired, and cells that are not done."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.core.watch import CHECKS
from dash_exp.report import comparison
from dash_exp.report.document import Block, Cell, Items, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import (
    whole,
)


def watch(c: Context) -> Section | None:
    """In how many outer steps each check of the watch fired."""
    found = {arm: counts for arm in c.results.arms if (counts := comparison.watched(c.results, arm))}
    if not found:
        return None
    title = "Checks that fired during training (watch)"
    names = [name for name in CHECKS if any(counts[name] for counts in found.values())]
    skipped = any(counts[comparison.SKIPPED] for counts in found.values())
    if not names and not skipped:
        return Section("watch", "Watch", title, [Paragraph("No check of the watch fired in any run.")])
    shown = [*names, *([comparison.SKIPPED] if skipped else [])]
    rows: list[list[Cell]] = []
    for arm, counts in found.items():
        first = {name: f" (first: step {step})" for name, step in comparison.first_fired(c.results, arm).items()}
        rows.append([c.named(arm), *(Cell(f"{whole(counts[name])}{first.get(name, '')}") for name in shown)])
    meanings = Items([Cell(f"{name}:", f" {CHECKS[name].meaning}.") for name in names])
    note = "Number of outer steps in which each check fired, summed over seeds. Runs that are not done count as well."
    table = Table(["arm", *names, *(["optimizer steps skipped"] if skipped else [])], rows)
    return Section("watch", "Watch", title, [Paragraph(note), meanings, table])


def not_done(c: Context) -> Section:
    """The cells that are not done, and why."""
    reasons = {
        "stopped": "stopped from outside before its last step",
        "unfinished": "no result: still running, or killed",
        "waiting": "not started yet",
    }
    rows: list[Sequence[Cell]] = [
        [Cell(c.results.arm(cell)), Cell(str(cell.seed)), Cell(cell.status), Cell(cell.error or reasons.get(cell.status, "–"))]
        for cell in c.results.cells
        if cell.status != "done"
    ]
    block: Block = Table(["arm", "seed", "status", "reason"], rows, words=4) if rows else Paragraph("All cells are done.")
    return Section("failures", "Not done", "Cells that are not done", [block])
