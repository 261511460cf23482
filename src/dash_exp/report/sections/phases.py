"""Seconds by phase of each arm."""

from __future__ import annotations

from dash_exp.core.metrics import PHASES
from dash_exp.report import comparison, figures
from dash_exp.report.document import Cell, Figure, Figures, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import seconds


def section(c: Context) -> Section | None:
    """Stacked bars and a table."""
    found = {arm: by_phase for arm in c.results.arms if (by_phase := comparison.phases(c.results, arm))}
    if not found:
        return None
    figures.time_by_phase(found, "time by phase", c.folder / "phases", f"seconds{c.mean_over_seeds}")
    columns = [*PHASES, "other"]
    totals = {arm: e.value for arm in found if (e := comparison.over_seeds(c.results, arm, "time/total_s")) is not None}
    rows = [
        [c.named(arm), *(Cell(seconds(by_phase[phase])) for phase in columns), Cell(seconds(totals[arm]))]
        for arm, by_phase in found.items()
    ]
    alt = "Stacked bars: seconds per phase of each arm; the table has the numbers"
    note = f"Seconds{c.mean_over_seeds}, including evaluation. The column other is set-up and writing files."
    if overlapping := [arm for arm, by_phase in found.items() if sum(by_phase.values()) > 1.001 * totals[arm]]:
        note += f" Sampling and training overlapped in {', '.join(overlapping)}, so the phases add up to more than the total."
    table = Table(["arm", *columns, "total"], rows)
    return Section("phases", "Time", "Time by phase", [Paragraph(note), Figures([Figure("phases", alt)]), table])
