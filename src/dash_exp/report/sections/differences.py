"""Differences in accuracy and training time between each arm and the baseline, and between each arm and the base model."""

from __future__ import annotations

from collections.abc import Mapping

from dash_exp.report import comparison, figures
from dash_exp.report.comparison import BASE, Difference
from dash_exp.report.document import Block, Cell, Figure, Figures, Items, Paragraph, Section, Table
from dash_exp.report.sections.context import Context
from dash_exp.report.words import points, probability, relative, span, test_label, times, whole

SMALLEST = (
    " a true difference smaller than this would be missed in more than one study in five, if no other arm differs and these "
    "seeds vary as much as others would (level divided by the number of arms)."
)


def section(c: Context) -> Section:
    """How to read the intervals, the figures, and the tables."""
    blocks: list[Block] = []
    if not c.tests or c.baseline is None:
        return Section("differences", "Differences", "Differences", [Paragraph("No cell has a final accuracy yet.")])
    of_problems = Cell("Over problems:", " uncertainty from the choice of test problems, for these runs (paired bootstrap).")
    if c.several_seeds:
        of_seeds = Cell("Over seeds:", " uncertainty from the choice of seeds (paired t interval; p with Holm's correction).")
        blocks.append(Items([of_seeds, of_problems, Cell("Smallest effect:", SMALLEST)]))
    else:
        blocks.append(Items([of_problems]))
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
    found = [d for by_test in (c.against_baseline, c.against_base) for of_test in by_test.values() for d in of_test]
    for what, few in (("seed", [d.over_seeds for d in found]), ("problem", [d.over_problems for d in found])):
        if any(e is not None and e.low is not None and e.low == e.high for e in few):
            said = f"An interval of zero width over {what}s means that every {what} gave exactly the same difference."
            blocks.append(Paragraph(f"{said} With few {what}s this can be chance."))
    kept = [block for block in blocks if not isinstance(block, Table) or block.rows]
    return Section("differences", "Differences", f"Differences from {c.baseline_name}", kept)


def pictures(c: Context) -> list[Block]:
    """A figure of the differences for each test set, with both intervals."""
    drawn = []
    intervals = "with two intervals" if c.several_seeds else "with their interval over problems"
    for test in c.tests:
        found = [d for d in c.against_baseline[test] if d.over_seeds is not None]
        if found:
            name = f"differences-{test}"
            title, xlabel = f"accuracy {test_label(test)}", f"points compared with {c.baseline_name}"
            figures.differences(found, c.looks, title, xlabel, c.folder / name)
            drawn.append(Figure(name, f"Differences in accuracy {test_label(test)} {intervals}; the table has the numbers"))
    return [Figures(drawn)] if drawn else []


def difference_table(c: Context, by_test: Mapping[str, list[Difference]], caption: str) -> Table:
    """One row per test set and arm."""
    several = c.several_seeds
    header = ["arm", "test set", "seeds", "problems", "difference", *(["over seeds", "p (Holm)"] if several else [])]
    header += ["over problems", *(["smallest effect"] if several else [])]
    rows = []
    for d in [d for found in by_test.values() for d in found]:
        e, of_problems = d.over_seeds, d.over_problems
        row = [c.named(d.arm), Cell(test_label(d.test))]
        if e is None:
            rows.append([*row, Cell("0"), Cell("0"), *[Cell("–")] * (len(header) - 4)])
            continue
        row += [Cell(str(e.n)), Cell(whole(of_problems.n if of_problems else 0)), Cell(points(e.value))]
        row += [Cell(span(e, points)), Cell(probability(d.p_holm))] if several else []
        smallest = Cell("–" if d.detectable is None else points(d.detectable).lstrip("+"))
        rows.append([*row, Cell(span(of_problems, points)), *([smallest] if several else [])])
    return Table(header, rows, caption, words=2)


def ratio_table(c: Context) -> Table:
    """Training time as a multiple of the baseline's, one row per arm."""
    rows = []
    for arm in [a for a in c.results.arms if a != c.baseline_of(a)]:
        found = comparison.time_ratio(c.results, arm, str(c.baseline))
        if found is not None:
            within = [Cell(span(found, times))] if c.several_seeds else []
            rows.append([c.named(arm), Cell(str(found.n)), Cell(times(found.value)), *within, Cell(relative(found.value - 1))])
    averaged = ", averaged on a log scale" if c.several_seeds else ""
    caption = f"Training time as a multiple of that of {c.baseline_name}, paired by seed{averaged}"
    return Table(["arm", "seeds", "ratio", *(["over seeds"] if c.several_seeds else []), "change"], rows, caption)
