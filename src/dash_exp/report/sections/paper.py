"""Changes against the baseline next to those that the paper reports."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.report import comparison, paper
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Cell, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.sections.verdicts import amount
from dash_exp.report.words import (
    relative,
    span,
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
    header = ["arm", "method in the paper", "quantity", *(f"paper, {size}; the same way here?" for size in sizes), "here"]
    rows = [
        [
            c.named(x.arm, "base model" if x.arm == BASE else None),
            Cell(x.method),
            Cell(x.quantity),
            *(Cell(relative(x.by_model.get(size)), x.way(size)) for size in sizes),
            Cell(relative(x.ours), interval(x.found)),
        ]
        for x in found
    ]
    setting = ", ".join(str(study[key]) for key in ("data", "models", "steps") if study.get(key))
    note = (
        f"Relative change compared with {c.baseline_name}: in table {study.get('table')} of arXiv 2505.17218"
        f"{f' ({setting})' if setting else ''}, and here. The set-ups differ in model, data and hardware, so compare only the "
        "direction and the rough size."
    )
    return Section("paper", "Paper", title, [Paragraph(note), Paragraph(ways(found)), Table(header, rows, words=3)])


def ways(found: Sequence[paper.Change]) -> str:
    """How many changes of the paper go the same way here, and what the words mean."""
    words = [word for x in found for model in x.by_model if (word := x.way(model))]
    same, opposite, undecided = (words.count(word) for word in ("same", "opposite", "undecided"))
    return (
        f"Of the {len(words)} change{'s' * (len(words) != 1)} in the paper, {same} {'goes' if same == 1 else 'go'} the same "
        f"way here and {opposite} the opposite way; {undecided} {'is' if undecided == 1 else 'are'} undecided. Same: the "
        "difference here has the sign of the paper's, and its 90% interval, below the number here, excludes 0 (for a ratio of "
        "times 1). Undecided: it does not, or there is none. The interval is that of the verdicts, over seeds in pairs; for "
        "accuracy it is over problems where the seeds show no spread, and then about these runs only. The paper gives no "
        "intervals."
    )


def interval(v: comparison.Verdict) -> str:
    """`−3.2 to +6.5 points, over seeds`; empty without an interval."""
    if v.estimate is None or not v.over:
        return ""
    show, unit = amount(v.claim)
    return f"{span(v.estimate, show)}{unit or ' times'}, over {v.over}"
