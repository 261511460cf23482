"""Changes against the baseline next to those that the paper reports."""

from __future__ import annotations

from dash_exp.report import paper
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Cell, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import (
    relative,
)


def section(c: Context) -> Section | None:
    """A table, or the note of the study if the paper has nothing to compare with."""
    study = c.results.study.get("paper") or {}
    title = "Comparison with the paper"
    if study.get("note"):
        return Section("paper", "Paper", title, [Paragraph(study["note"])])
    if not study.get("methods"):
        return None
    found = paper.changes(c.results, c.baseline)
    if not found:
        said = f"The baseline {c.baseline} is not one of the methods in study.paper.methods, so changes cannot be compared."
        return Section("paper", "Paper", title, [Paragraph(said)])
    sizes = list(dict.fromkeys(size for change in found for size in change.by_model))
    header = ["arm", "method in the paper", "quantity", *(f"paper, {size}" for size in sizes), "here"]
    rows = [
        [
            c.named(x.arm, "base model" if x.arm == BASE else None),
            Cell(x.method),
            Cell(x.quantity),
            *(Cell(relative(x.by_model.get(size))) for size in sizes),
            Cell(relative(x.ours)),
        ]
        for x in found
    ]
    setting = ", ".join(str(study[key]) for key in ("data", "models", "steps") if study.get(key))
    note = (
        f"Relative change compared with {c.baseline_name}: in table {study.get('table')} of arXiv 2505.17218"
        f"{f' ({setting})' if setting else ''}, and here. The set-ups differ in model, data and hardware, so compare only the "
        "direction and the rough size."
    )
    return Section("paper", "Paper", title, [Paragraph(note), Table(header, rows, words=3)])
