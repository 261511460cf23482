"""Settings and derived sizes that differ between the arms."""

from __future__ import annotations

from dash_exp.report import differing, warnings
from dash_exp.report.document import Block, Cell, Items, Paragraph, Section, Table
from dash_exp.report.sections.context import Context


def section(c: Context) -> Section:
    """A table of the resolved settings that differ, and a warning if one of them was not swept."""
    differs = differing.settings(c.results)
    sizes = {f"size: {key}": by_arm for key, by_arm in differing.sizes(c.results).items()}
    shown = differing.folded(differs) | sizes
    rows = [
        [Cell(key), *(Cell(by_arm.get(arm, "–").replace("dash_exp.", "")) for arm in c.results.arms)]
        for key, by_arm in shown.items()
    ]
    swept = ", ".join(c.results.swept) or "none"
    note = f"Swept settings: {swept}. The table lists all settings and derived sizes that differ between cells."
    warned = [Cell(text) for text in warnings.unexplained(c.results)]
    blocks: list[Block] = [
        Paragraph(note),
        *([Items(warned, warn="Some differences do not come from the swept settings")] if warned else []),
    ]
    table = Table(["setting", *c.results.arms], rows, words=1 + len(c.results.arms))
    return Section("settings", "Settings", "Settings that differ between the arms", [*blocks, *([table] if rows else [])])
