"""How far a sweep is, and how long the rest takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dash_exp.core.words import duration
from dash_exp.results.cells import Cell


def progress_line(cells: Sequence[Cell], at_once: int) -> str:
    """`sweep: 3 of 12 cells done, 1 failed; about 12:30 left`. `at_once` cells run at a time (-1: one per core)."""
    at_once = at_once if at_once > 0 else os.cpu_count() or 1
    count = {status: sum(cell.status == status for cell in cells) for status in ("done", "failed", "stopped")}
    bad = "".join(f", {count[status]} {status}" for status in ("failed", "stopped") if count[status])
    left = left_s(cells) / at_once
    return f"sweep: {count['done']} of {len(cells)} cells done{bad}" + (f"; about {duration(left)} left" if left else "")


def left_s(cells: Sequence[Cell]) -> float:
    """Seconds that the cells still to run will take, one after the other: for each `expected_s`, 0 where nothing is done."""
    done = [cell for cell in cells if cell.status == "done"]
    return sum(expected_s(cell, done) or 0.0 for cell in cells if cell.status in ("waiting", "unfinished"))


def expected_s(cell: Cell, done: Sequence[Cell]) -> float | None:
    """Seconds that a cell takes from its start to its end: the mean of the done cells that differ only in the seed, or else of
    all done cells. None where there is none.
    """

    def arm(cell: Cell) -> frozenset[tuple[str, str]]:
        return frozenset((k, v) for k, v in cell.overrides.items() if k != "seed")

    alike = [c for c in done if arm(c) == arm(cell)] or done
    return sum(c.result["time/total_s"] for c in alike) / len(alike) if alike else None
