"""The page of a sweep that runs: how far it is at the top, then the verdicts, curves and arms so far, and each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dash_exp.core.words import duration, first_line
from dash_exp.report import sections
from dash_exp.report.document import Cell, Document, Items, Paragraph, Section, Table
from dash_exp.report.live.progress import OPEN, STATES, Progress, all_left_s
from dash_exp.report.sections.context import Context
from dash_exp.results.cells import Results


def document(
    results: Results,
    progress: Sequence[Progress],
    unread: Mapping[str, str],
    figures: Path,
    baseline: str | None,
    target: float | None,
    time: str,
    reload_s: int,
) -> Document:
    """The page. `unread`: why a cell could not be read, by its name. `time`: when the cells were read.

    Figures are written into `figures`. Raises UserError if the baseline is not the name of an arm.
    """
    c = replace(sections.context_of(results, figures, baseline, target), live=True, tests=tests_of(results))
    found = [
        failed(c, progress, unread),
        sections.verdicts.section(c),
        sections.curves.section(c),
        sections.summary.section(c),
        sections.arms.section(c),
        cells(c, progress),
        sections.status.watch(c),
    ]
    return Document(
        title=sections.title(results),
        lead=sections.lead(results),
        created=f"As of {time}. The page is renewed as cells progress, and loads itself again. Numbers and verdicts are those "
        "of the cells that are done; curves are those of all cells so far.",
        facts=facts(progress),
        sections=[section for section in found if section is not None],
        legend=[(arm, *c.looks[arm]) for arm in results.arms],
        reload_s=reload_s,
    )


def tests_of(results: Results) -> list[str]:
    """The test sets: before any result there is, those of `metrics.csv`."""
    columns = (column for cell in results.cells for column in cell.metrics.columns)
    found = [column.removeprefix("accuracy/") for column in columns if column.startswith("accuracy/")]
    return results.tests or list(dict.fromkeys(found))


def facts(progress: Sequence[Progress]) -> list[tuple[str, str]]:
    """How many cells are done, running, failed and left, and how long the rest takes."""
    count = {state: sum(p.state == state for p in progress) for state in STATES}
    found = [("cells done", f"{count['done']} of {len(progress)}"), ("running", str(count["running"]))]
    found += [("failed", str(count["failed"])), ("left", str(count["waiting"]))]
    found += [(state, str(count[state])) for state in ("silent", "stopped") if count[state]]
    return [*found, ("time left", left(all_left_s(progress), any(p.state in OPEN for p in progress)))]


def failed(c: Context, progress: Sequence[Progress], unread: Mapping[str, str]) -> Section | None:
    """The cells that failed or could not be read, each with the reason."""
    items = []
    for p in progress:
        if p.state == "failed":
            arm = c.results.arm(p.cell)
            items.append(c.named(arm, f"{arm}, seed {p.cell.seed}:", first_line(p.cell.error) or "no reason is recorded"))
    items += [Cell(f"{name}:", f"not read, so it is shown as before. {first_line(why)}") for name, why in unread.items()]
    block = Items(items, warn="The other cells are not affected")
    return Section("failed", "Failed", "What failed", [block]) if items else None


def cells(c: Context, progress: Sequence[Progress]) -> Section:
    """A row for each cell, those that run first: its state, how far it is, and how long it still takes."""
    rows = [
        [
            c.named(c.results.arm(p.cell)),
            Cell(str(p.cell.seed)),
            Cell(p.state, note(p)),
            Cell(f"{p.step:,} of {p.steps:,}" if p.steps else "–", share=min(1.0, p.step / p.steps) if p.steps else None),
            Cell(left(p.left_s, p.state in OPEN)),
        ]
        for p in sorted(progress, key=lambda p: STATES.index(p.state))
    ]
    header = ["arm", "seed", "state", "outer steps", "time left"]
    text = (
        "Time left is at the pace of the cell so far. Of one that has not started it is the time of done cells: of those that "
        "differ only in the seed, or else of all."
    )
    return Section("cells", "Cells", "Cells", [Paragraph(text), Table(header, rows, words=3)])


def note(p: Progress) -> str:
    """What the state of a cell means, where the word alone does not say it."""
    match p.state:
        case "failed":
            return first_line(p.cell.error)
        case "silent":
            return f"nothing written for {duration(p.silent_s)}: in a long step, or killed"
        case "stopped":
            return "from outside before its last step; the same command continues it"
        case _:
            return ""


def left(left_s: float | None, is_open: bool) -> str:
    """`about 12:30`; a dash for what is over."""
    if not is_open:
        return "–"
    return "not known yet" if left_s is None else f"about {duration(left_s)}"
