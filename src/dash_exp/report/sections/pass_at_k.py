"""pass@k before and after training, if it was measured."""

from __future__ import annotations

from dash_exp.report import comparison, figures
from dash_exp.report.comparison import BASE
from dash_exp.report.document import Cell, Figure, Figures, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import percent, span, test_label, unit


def section(c: Context) -> Section | None:
    """A figure for each test set and one table."""
    drawn, rows = [], []
    ks: set[int] = set()
    for test in c.tests:
        found = {arm: by_k for arm in [BASE, *c.results.arms] if (by_k := comparison.pass_at_k(c.results, arm, test))}
        if set(found) <= {BASE}:
            continue
        ks |= {k for by_k in found.values() for k in by_k}
        name = f"pass_at_k-{test}"
        figures.pass_at_k(found, c.looks, f"pass@k {test_label(test)}, %", c.folder / name)
        drawn.append(Figure(name, f"pass@k {test_label(test)} against k for each arm; the table has the numbers"))
        rows += [(arm, test, by_k) for arm, by_k in found.items()]
    if not rows:
        return None
    cells = [
        [
            c.named(arm, "base model" if arm == BASE else None),
            Cell(test_label(test)),
            *(
                Cell("–")
                if k not in by_k
                else Cell(percent(by_k[k].value), "" if arm == BASE or by_k[k].low is None else span(unit(by_k[k]), percent))
                for k in sorted(ks)
            ),
        ]
        for arm, test, by_k in rows
    ]
    table = Table(["arm", "test set", *(f"pass@{k}, %" for k in sorted(ks))], cells, words=2)
    note = (
        "The probability that at least one of k sampled completions is correct (arXiv 2107.03374)."
        f"{' Means and intervals are over seeds.' if c.several_seeds else ''}"
    )
    return Section("pass-at-k", "pass@k", "pass@k before and after training", [Paragraph(note), Figures(drawn), table])
