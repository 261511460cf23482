"""Differences in accuracy and training time between each arm and the baseline, and between each arm and the base model."""

from __future__ import annotations

from collections.abc import Mapping

from dash_exp.report import comparison, figures
from dash_exp.report.comparison import BASE, Difference
from dash_exp.report.document import Block, Cell, Figure, Figures, Items, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import points, probability, relative, span, test_label, times


def section(c: Context) -> Section:
    """How to read the intervals, the figures, and the tables."""
    blocks: list[Block] = []
    if not c.tests or c.baseline is None:
        return Section("differences", "Differences", "Differences", [Paragraph("No cell has a final accuracy yet.")])
    blocks.append(
        Items(
            [
                Cell("Over seeds:", " uncertainty from the choice of seeds (paired t interval; p with Holm's correction)."),
                Cell("Over problems:", " uncertainty from the choice of test problems, for these runs (paired bootstrap)."),
                Cell(
                    "Smallest effect:",
                    " a true difference smaller than this, corrected for the number of arms, would be missed in more than one "
                    "study in five.",
                ),
            ]
        )
    )
    if max((len(comparison.by_seed(c.results, arm)) for arm in c.results.arms), default=0) < 2:
        blocks.append(Paragraph("With one seed there is no interval over seeds, no p value and no smallest effect."))
    blocks += pictures(c)
    if c.baseline != BASE:
        blocks.append(
            difference_table(
                c,
                c.against_baseline,
                f"Difference in percentage points from {c.baseline_name}, paired by seed, on the same problems",
            )
        )
        blocks.append(ratio_table(c))
    blocks.append(difference_table(c, c.against_base, "Difference in percentage points from the base model"))
    found = [d.over_seeds for by_test in (c.against_baseline, c.against_base) for of_test in by_test.values() for d in of_test]
    if any(e is not None and e.low is not None and e.low == e.high for e in found):
        said = (
            "An interval of zero width means that every seed gave exactly the same difference. "
            "With few seeds this can be chance."
        )
        blocks.append(Paragraph(said))
    kept = [block for block in blocks if not isinstance(block, Table) or block.rows]
    return Section("differences", "Differences", f"Differences from {c.baseline_name}", kept)


def pictures(c: Context) -> list[Block]:
    """A figure of the differences for each test set, with both intervals."""
    drawn = []
    for test in c.tests:
        found = [d for d in c.against_baseline[test] if d.over_seeds is not None]
        if found:
            name = f"differences-{test}"
            title, xlabel = f"accuracy {test_label(test)}", f"points compared with {c.baseline_name}"
            figures.differences(found, c.looks, title, xlabel, c.folder / name)
            drawn.append(
                Figure(name, f"Differences in accuracy {test_label(test)} with two intervals; the table has the numbers")
            )
    return [Figures(drawn)] if drawn else []


def difference_table(c: Context, by_test: Mapping[str, list[Difference]], caption: str) -> Table:
    """One row per test set and arm."""
    header = ["arm", "test set", "seeds", "difference", "over seeds", "p (Holm)", "over problems", "smallest effect"]
    rows = []
    for d in [d for found in by_test.values() for d in found]:
        e, of_problems = d.over_seeds, d.over_problems
        row = [c.named(d.arm), Cell(test_label(d.test))]
        if e is None:
            rows.append([*row, Cell("0"), *[Cell("–")] * 5])
            continue
        row += [Cell(str(e.n)), Cell(points(e.value)), Cell(span(e, points))]
        row += [Cell(probability(d.p_holm)), Cell(span(of_problems, points))]
        rows.append([*row, Cell("–" if d.detectable is None else points(d.detectable).lstrip("+"))])
    return Table(header, rows, caption, words=2)


def ratio_table(c: Context) -> Table:
    """Training time as a multiple of the baseline's, one row per arm."""
    rows = []
    for arm in [a for a in c.results.arms if a != c.baseline_of(a)]:
        found = comparison.time_ratio(c.results, arm, str(c.baseline))
        if found is not None:
            row = [c.named(arm), Cell(str(found.n)), Cell(times(found.value)), Cell(span(found, times))]
            rows.append([*row, Cell(relative(found.value - 1))])
    caption = f"Training time as a multiple of that of {c.baseline_name}, paired by seed, averaged on a log scale"
    return Table(["arm", "seeds", "ratio", "over seeds", "change"], rows, caption)
