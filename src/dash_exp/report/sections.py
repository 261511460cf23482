"""The sections of a report: the numbers of `comparison.py`, worded and put into tables. Figures: `panels.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dash_exp.core.watch import CHECKS
from dash_exp.report import comparison, controls, figures, panels, paper, samples
from dash_exp.report.comparison import BASE, Difference
from dash_exp.report.document import Block, Cell, Document, Items, Paragraph, Sample, Samples, Section, Table
from dash_exp.report.panels import Context
from dash_exp.report.words import (
    Show,
    percent,
    points,
    probability,
    relative,
    seconds,
    span,
    test_label,
    times,
    tokens,
    unit,
    whole,
)
from dash_exp.results.cells import AXES, STATUSES, Results
from dash_exp.results.stats import Estimate

ALPHA = 0.05


def document(results: Results, folder: Path, baseline: str | None, target: float | None, made: str) -> Document:
    """The whole report. Figures are written into `folder`. Raises UserError for a baseline that is no arm."""
    chosen = comparison.choose_baseline(results, baseline)
    looks = figures.styles(results.arms, chosen)
    context = Context(
        results=results,
        folder=folder,
        baseline=chosen,
        target=comparison.choose_target(results, chosen, target),
        tests=results.tests,
        looks=looks,
    )
    figures.legend({arm: looks[arm] for arm in results.arms}, folder / "legend")
    made_by: list[Callable[[Context], Section | None]] = [summary, arms, against_baseline, time_to_target]
    made_by += [panels.phases, panels.curves, panels.pass_at_k, against_paper, settings, completions, watches, failures]
    names = dict.fromkeys(str(cell.config["name"]) for cell in results.cells if cell.config.get("name"))
    return Document(
        title=", ".join(names) or "comparison",
        lead=results.study.get("question") or f"What do {len(results.arms)} arms reach, and what does it cost?",
        made=f"Made {made} from {len(results.cells)} cells. Intervals are at 95%; accuracy is greedy, in percent.",
        facts=facts(context),
        sections=[section for make in made_by if (section := make(context)) is not None],
        legend=[(arm, *looks[arm]) for arm in results.arms],
    )


def facts(c: Context) -> list[tuple[str, str]]:
    """What is said in the largest letters: how much of it is there."""
    count = {status: sum(cell.status == status for cell in c.results.cells) for status in STATUSES}
    seeds = {seed for arm in c.results.arms for seed in comparison.by_seed(c.results, arm)}
    tested = [[len(comparison.right(cell, test, "final")) for cell in c.results.cells] for test in c.tests]
    problems = " + ".join(f"{max(counts):,}" for counts in tested if counts)
    found = [("cells done", f"{count['done']} of {len(c.results.cells)}"), ("failed", str(count["failed"]))]
    found += [(status, str(count[status])) for status in ("stopped", "unfinished", "waiting") if count[status]]
    found += [("arms", str(len(c.results.arms))), ("seeds", str(len(seeds)))]
    return [*found, ("test problems", problems)] if problems else found


def summary(c: Context) -> Section:
    """What came of each arm, in a sentence."""
    items = [c.named(arm, detail=outcome(c, arm)) for arm in c.results.arms]
    warnings = controls.warnings(c.results)
    blocks: list[Block] = [Items(items)] if items else [Paragraph("There are no cells.")]
    if warnings:
        blocks.append(Items([Cell(text) for text in warnings], warn="Read this first"))
    return Section("summary", "Summary", "Summary", [*blocks, *panels.tradeoff(c)])


def outcome(c: Context, arm: str) -> str:
    """`90.5% in distribution: -0.2 points against grpo (-0.9 to +0.5 over 3 seeds: no difference shown); 0.57 times ...`

    Other test sets are mentioned where their interval leaves out 0.
    """
    if not c.tests or (final := comparison.over_seeds(c.results, arm, f"accuracy/{c.tests[0]}/final")) is None:
        states = dict.fromkeys(cell.status for cell in c.results.of_arm(arm, None))
        return f"has no accuracy yet: its cells are {', '.join(states)}."
    reached = f"{percent(final.value)}% {test_label(c.tests[0])}"
    against = c.baseline_of(arm)
    if arm == against:
        return f"{reached}; the others are compared with it."
    found = {d.arm: d for d in c.against_baseline[c.tests[0]]}[arm]
    if found.over_seeds is None:
        return f"{reached}; no seed is done in both this arm and {against or c.baseline_name}."
    name = "the base model" if against == BASE else against
    said = f"{reached}: {points(found.over_seeds.value)} points against {name} ({verdict(found)})"
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
    """The interval of a difference and what it allows to say. After Holm's correction, since several arms are looked at."""
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
        return f"{within}; not shown once all arms are counted, p {equals(d.p_holm)}"
    return f"{within}: no difference shown"


def equals(p: float) -> str:
    """`0.031 -> "= 0.031"`, and `"< 0.001"` as it is."""
    return shown if (shown := probability(p)).startswith("<") else f"= {shown}"


def apart(d: Difference) -> bool:
    """Whether the interval over seeds leaves out 0, before any correction."""
    e = d.over_seeds
    return e is not None and e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)


def accuracy(e: Estimate | None) -> Cell:
    """A mean with its interval, cut at 0 and 100%, of which the t interval knows nothing; a dash where there is none."""
    if e is None:
        return Cell("–")
    return Cell(percent(e.value), "" if e.low is None or e.high is None else span(unit(e), percent))


def arms(c: Context) -> Section:
    """What each arm reached and used."""
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
        own = not comparison.written(c.results, arm)
        row += [mean(c, arm, "tokens/sampled", whole) if own else Cell("–"), mean(c, arm, "tokens/trained", whole)]
        row += [mean(c, arm, "kept", lambda x: f"{percent(x)}%") if own else Cell("–"), mean(c, arm, "steps", tokens)]
        stops = dict.fromkeys(str(cell.result.get("stopped_by") or "all steps").replace("_", " ") for cell in done)
        rows.append([*row, Cell(", ".join(stops) or "–")])
    note = (
        "Means over seeds; below an accuracy its interval over seeds, cut at 0 and 100. Training time excludes evaluation; "
        "length is that of the greedy completions in tokens, one number for each test set."
    )
    if any(comparison.written(c.results, arm) for arm in c.results.arms):
        note += " An arm that learns from written traces samples and drops no completions of its own."
    return Section("arms", "Arms", "What each arm reached", [Paragraph(note), Table(header, rows)])


def base_row(c: Context, name: Cell, arm: str | None) -> list[Cell]:
    """Accuracy and length of the base model, or of the one that an arm started from."""
    found = [comparison.of_base(c.results, f"accuracy/{t}", arm) for t in c.tests]
    length = lengths([comparison.of_base(c.results, f"eval/{t}/length/mean_tokens", arm) for t in c.tests])
    return [name, Cell(""), *(Cell("–" if e is None else percent(e.value)) for e in found), length, *[Cell("")] * 6]


def lengths(found: Sequence[Estimate | None]) -> Cell:
    """Mean tokens of the greedy completions, test set by test set."""
    return Cell(" / ".join("–" if e is None else tokens(e.value) for e in found))


def mean(c: Context, arm: str, key: str, show: Show) -> Cell:
    found = comparison.over_seeds(c.results, arm, key)
    return Cell("–" if found is None else show(found.value))


def against_baseline(c: Context) -> Section:
    """Paired differences with both intervals, and the same against the base model."""
    blocks: list[Block] = []
    if not c.tests or c.baseline is None:
        return Section("differences", "Differences", "Differences", [Paragraph("No cell has a final accuracy yet.")])
    blocks.append(
        Items(
            [
                Cell("Over seeds:", " what other seeds would give on these problems (paired t interval; p corrected by Holm)."),
                Cell("Over problems:", " what other problems of this kind would give with these very runs (paired bootstrap)."),
                Cell(
                    "Smallest effect:",
                    " a true difference below this, all arms counted, would be missed in more than one study in five.",
                ),
            ]
        )
    )
    if max((len(comparison.by_seed(c.results, arm)) for arm in c.results.arms), default=0) < 2:
        blocks.append(Paragraph("With one seed there is no interval over seeds, no p and no smallest effect."))
    blocks += panels.differences(c)
    if c.baseline != BASE:
        blocks.append(
            difference_table(c, c.against_baseline, f"Percentage points against {c.baseline_name}, same seed and same problems")
        )
        blocks.append(ratio_table(c))
    blocks.append(difference_table(c, c.against_base, "Percentage points against the base model"))
    found = [d.over_seeds for by_test in (c.against_baseline, c.against_base) for of_test in by_test.values() for d in of_test]
    if any(e is not None and e.low is not None and e.low == e.high for e in found):
        said = "An interval of no width: every seed gave the very same difference. So few seeds do not make that certain."
        blocks.append(Paragraph(said))
    kept = [block for block in blocks if not isinstance(block, Table) or block.rows]
    return Section("differences", "Differences", f"Differences from {c.baseline_name}", kept)


def difference_table(c: Context, by_test: Mapping[str, list[Difference]], caption: str) -> Table:
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
    rows = []
    for arm in [a for a in c.results.arms if a != c.baseline_of(a)]:
        found = comparison.time_ratio(c.results, arm, str(c.baseline))
        if found is not None:
            row = [c.named(arm), Cell(str(found.n)), Cell(times(found.value)), Cell(span(found, times))]
            rows.append([*row, Cell(relative(found.value - 1))])
    caption = f"Training time as a multiple of that of {c.baseline_name}, paired by seed, on the log scale"
    return Table(["arm", "seeds", "ratio", "over seeds", "change"], rows, caption)


def time_to_target(c: Context) -> Section:
    """The first evaluation at or above the target accuracy."""
    title = "Time to a target accuracy"
    if c.target is None:
        said = (
            "There is no target: none was given, and none can be derived where the baseline does not exceed the base model or "
            "is another one for each arm. `target=0.9` on the command line gives one."
        )
        return Section("target", "Target", title, [Paragraph(said)])
    rows = []
    for arm in c.results.arms:
        found = comparison.reach(c.results, arm, c.target.value)
        never = "not by half" if found.reached else "not reached"
        shown = [
            (seconds if axis == "seconds" else whole)(at) if math.isfinite(at := found.median[axis]) else never for axis in AXES
        ]
        rows.append([c.named(arm), Cell(f"{found.reached} of {found.n} seeds"), *map(Cell, shown)])
    note = (
        f"Target: {percent(c.target.value)}% in distribution, {c.target.why}. The first evaluation at or above it; the median "
        "over seeds, in which a seed that never gets there counts as infinitely late."
    )
    return Section("target", "Target", title, [Paragraph(note), Table(["arm", "reached by", *AXES.values()], rows, words=1)])


def against_paper(c: Context) -> Section | None:
    """The paper's changes beside ours."""
    study = c.results.study.get("paper") or {}
    title = "Beside the paper"
    if study.get("note"):
        return Section("paper", "Paper", title, [Paragraph(study["note"])])
    if not study.get("methods"):
        return None
    found = paper.changes(c.results, c.baseline)
    if not found:
        said = f"The baseline {c.baseline} is not among the methods of the study, so no change can be set beside the paper's."
        return Section("paper", "Paper", title, [Paragraph(said)])
    sizes = list(dict.fromkeys(size for change in found for size in change.by_model))
    header = ["arm", "in the paper", "quantity", *(f"paper, {size}" for size in sizes), "here"]
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
        f"Change against {c.baseline_name} in percent of its value: in table {study.get('table')} of arXiv 2505.17218"
        f"{f' ({setting})' if setting else ''}, and here. The set-ups differ in model, data and hardware, so only directions "
        "and rough sizes compare."
    )
    return Section("paper", "Paper", title, [Paragraph(note), Table(header, rows, words=3)])


def settings(c: Context) -> Section:
    """What differed between the arms' resolved configurations, and the derived sizes."""
    differs = controls.differing(c.results)
    sizes = {f"size: {key}": by_arm for key, by_arm in controls.sizes(c.results).items()}
    shown = controls.folded(differs) | sizes
    rows = [
        [Cell(key), *(Cell(by_arm.get(arm, "–").replace("dash_exp.", "")) for arm in c.results.arms)]
        for key, by_arm in shown.items()
    ]
    swept = ", ".join(c.results.swept) or "nothing"
    note = f"Swept: {swept}. These settings and derived sizes differ between cells; all others are the same."
    warned = [Cell(text) for text in controls.unexplained(c.results)]
    blocks: list[Block] = [Paragraph(note), *([Items(warned, warn="Not only what was swept")] if warned else [])]
    table = Table(["setting", *c.results.arms], rows, words=1 + len(c.results.arms))
    return Section("settings", "Settings", "What differed between the arms", [*blocks, *([table] if rows else [])])


def completions(c: Context) -> Section:
    """The same problems in each arm."""
    seed, step, chosen = samples.choose(c.results)
    title = "Sample completions"
    if not chosen:
        return Section("samples", "Samples", title, [Paragraph("The arms kept no completions of the same problem.")])
    blocks: list[Block] = [Paragraph(f"Of outer step {step}, the last that all arms kept, with seed {seed}.")]
    for of_arm in chosen.values():
        first = next(iter(of_arm.values()))[0]
        each = []
        for arm, records in of_arm.items():
            whose = "written for it; " if comparison.written(c.results, arm) else ""
            texts = [(whose + sample_facts(r), samples.shortened(str(r.get("completion", "")))) for r in records]
            each.append(Sample(c.named(arm), texts))
        blocks.append(Samples(str(first.get("prompt", "")), str(first.get("answer", "")), each))
    return Section("samples", "Samples", title, blocks)


def sample_facts(record: samples.Record) -> str:
    reward, advantage = record.get("reward"), record.get("advantage")
    said = [f"reward {reward:.2f}" if isinstance(reward, int | float) else "no reward"]
    said += [f"advantage {advantage:+.2f}".replace("-", "−")] if isinstance(advantage, int | float) else []
    said += ["kept" if record["kept"] else "dropped"] if "kept" in record else []
    return ", ".join([*said, *(["cut off"] if record.get("truncated") else [])])


def watches(c: Context) -> Section | None:
    """In how many outer steps each check of the watch fired."""
    found = {arm: counts for arm in c.results.arms if (counts := comparison.watched(c.results, arm))}
    if not found:
        return None
    title = "What the watch saw"
    names = [name for name in CHECKS if any(counts[name] for counts in found.values())]
    skipped = any(counts[comparison.SKIPPED] for counts in found.values())
    if not names and not skipped:
        return Section("watch", "Watch", title, [Paragraph("No check of the watch fired in any run.")])
    shown = [*names, *([comparison.SKIPPED] if skipped else [])]
    rows = [[c.named(arm), *(Cell(whole(counts[name])) for name in shown)] for arm, counts in found.items()]
    meanings = Items([Cell(f"{name}:", f" {CHECKS[name].meaning}.") for name in names])
    note = "In how many outer steps each check fired, summed over seeds, in runs that are not done as well."
    table = Table(["arm", *names, *(["optimizer steps left out"] if skipped else [])], rows)
    return Section("watch", "Watch", title, [Paragraph(note), meanings, table])


def failures(c: Context) -> Section:
    """The cells that are not done, and why."""
    reasons = {
        "stopped": "stopped from outside before its last step",
        "unfinished": "no result: still running, or killed",
        "waiting": "has not started",
    }
    rows: list[Sequence[Cell]] = [
        [Cell(c.results.arm(cell)), Cell(str(cell.seed)), Cell(cell.status), Cell(cell.error or reasons.get(cell.status, "–"))]
        for cell in c.results.cells
        if cell.status != "done"
    ]
    block: Block = Table(["arm", "seed", "status", "reason"], rows, words=4) if rows else Paragraph("Every cell is done.")
    return Section("failures", "Not done", "Cells that are not done", [block])
