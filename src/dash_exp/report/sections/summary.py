"""The summary: one sentence for each arm, the warnings, and a figure of accuracy against training time."""

from __future__ import annotations

from dash_exp.report import comparison, figures, warnings
from dash_exp.report.comparison import BASE, Difference
from dash_exp.report.document import Block, Cell, Figure, Figures, Items, Paragraph, Section
from dash_exp.report.sections.context import Context
from dash_exp.report.words import percent, points, probability, seconds, span, test_label, times

ALPHA = 0.05  # level of significance
UNDECIDED = (
    "Undecided: these runs show neither that the two arms differ nor that they are equal. That they are, within a margin, is a "
    "claim that a sweep can state (study.claims)."
)


def section(c: Context) -> Section:
    """The result of each arm in a sentence, and what to know before reading it."""
    items = [c.named(arm, detail=outcome(c, arm)) for arm in c.results.arms]
    found = warnings.warnings(c.results)
    blocks: list[Block] = [Items(items)] if items else [Paragraph("There are no cells.")]
    if any("seeds: undecided" in item.detail for item in items):
        blocks.append(Paragraph(UNDECIDED))
    if found:
        blocks.append(Items([Cell(text) for text in found], warn="Read this first"))
    return Section("summary", "Summary", "Summary", [*blocks, *tradeoff(c)])


def outcome(c: Context, arm: str) -> str:
    """`90.5% in distribution: -0.2 points compared with grpo (-0.9 to +0.5 over 3 seeds: undecided); 0.57 times the
    training time.`

    Other test sets are mentioned if their interval does not contain 0.
    """
    if not c.tests or (final := comparison.over_seeds(c.results, arm, f"accuracy/{c.tests[0]}/final")) is None:
        states = dict.fromkeys(cell.status for cell in c.results.of_arm(arm, None))
        return f"no accuracy yet: the state of its cells is {', '.join(states)}."
    reached = f"{percent(final.value)}% {test_label(c.tests[0])}"
    against = c.baseline_of(arm)
    if arm == against:
        return f"{reached}. This is the baseline: the other arms are compared with it."
    found = {d.arm: d for d in c.against_baseline[c.tests[0]]}[arm]
    if found.over_seeds is None:
        name = against or c.baseline_name
        both = set(comparison.by_seed(c.results, arm)) & set(comparison.by_seed(c.results, against))
        if both or against == BASE:
            return f"{reached}. No test problem is recorded both in this arm and in {name}."
        return f"{reached}. No seed is done both in this arm and in {name}."
    name = "the base model" if against == BASE else against
    said = f"{reached}: {points(found.over_seeds.value)} points compared with {name} ({verdict(found)})"
    for test in c.tests[1:]:
        other = next(d for d in c.against_baseline[test] if d.arm == arm)
        if other.over_seeds is not None and apart(other):
            said += f"; {test_label(test)} {points(other.over_seeds.value)} points ({verdict(other)})"
    ratio = None if c.baseline == BASE else comparison.time_ratio(c.results, arm, str(c.baseline))
    if ratio is not None:
        within = f" ({span(ratio, times)})" if ratio.low is not None else ""
        said += f"; {times(ratio.value)} times the training time{within}"
    return f"{said}."


def verdict(d: Difference) -> str:
    """The interval of a difference and what follows from it, after Holm's correction for several arms."""
    e = d.over_seeds
    assert e is not None
    if e.low is None or e.high is None:
        over = f", {span(d.over_problems, points)} over problems" if d.over_problems else ""
        return f"one seed{over}"
    within = f"{span(e, points)} over {e.n} seeds"
    if d.p_holm is None:
        return f"{within}: every seed gave the same difference"
    if d.p_holm < ALPHA:
        return f"{within}: {'higher' if e.value > 0 else 'lower'}, p {equals(d.p_holm)}"
    if apart(d):
        return f"{within}: undecided when corrected for the number of arms, p {equals(d.p_holm)}"
    return f"{within}: undecided"


def equals(p: float) -> str:
    """`0.031 -> "= 0.031"`, and `"< 0.001"` as it is."""
    return shown if (shown := probability(p)).startswith("<") else f"= {shown}"


def apart(d: Difference) -> bool:
    """Whether the interval over seeds does not contain 0, before any correction."""
    e = d.over_seeds
    return e is not None and e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)


def tradeoff(c: Context) -> list[Block]:
    """Accuracy against training time, per test set."""
    drawn = []
    for test in c.tests:
        points = {}
        for arm in c.results.arms:
            time = comparison.over_seeds(c.results, arm, "time/elapsed_s")
            final = comparison.over_seeds(c.results, arm, f"accuracy/{test}/final")
            if time is not None and final is not None:
                points[arm] = (time.value, final)
        if points:
            base = comparison.of_base(c.results, f"accuracy/{test}")
            xlabel = f"seconds of training{c.mean_over_seeds}"
            title, name = f"accuracy {test_label(test)}, %", f"tradeoff-{test}"
            figures.tradeoff(points, base.value if base else None, c.looks, title, c.folder / name, xlabel)
            words = "; ".join(f"{arm} {percent(e.value)}% in {seconds(s)}" for arm, (s, e) in points.items())
            drawn.append(Figure(name, f"Final accuracy {test_label(test)} against seconds of training: {words}"))
    return [Figures(drawn)] if drawn else []
