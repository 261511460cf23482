"""How far each cell of a sweep is, and how long the rest takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dash_exp.commands.sweep.progress import expected_s
from dash_exp.report.live.reading import last_sign_s, started_again
from dash_exp.results.cells import Cell

SILENT_S = 300.0  # without a sign of life, and longer than this many outer steps:
SILENT_STEPS = 10
STATES = ("running", "silent", "failed", "stopped", "waiting", "done")  # as the page orders them
OPEN = ("running", "silent", "waiting")  # these cells may still change


@dataclass(frozen=True)
class Progress:
    """How far a cell is.

    `state`: one of `STATES`; a silent cell was running and has written nothing for long. `step` of `steps` outer steps are done
    (None: not known). `left_s`: seconds until its end, None where nothing says it. `silent_s`: seconds since it last wrote.
    """

    cell: Cell
    state: str
    step: int
    steps: int | None
    left_s: float | None
    silent_s: float


def of_cells(cells: Sequence[Cell], now_s: float) -> list[Progress]:
    """One for each cell, in their order; `now_s` as `time.time` gives it."""
    done = [cell for cell in cells if cell.status == "done" and "time/total_s" in cell.result]
    return [of_cell(cell, done, now_s) for cell in cells]


def of_cell(cell: Cell, done: Sequence[Cell], now_s: float) -> Progress:
    """How far a cell is; without a pace of its own the `done` cells say how long it takes."""
    silent_s = max(0.0, now_s - last_sign_s(cell.folder)) if cell.status != "waiting" else 0.0
    state = state_of(cell, silent_s)
    step = 0 if state == "waiting" else step_of(cell)
    whole = cell.config.get("steps")
    steps = whole if isinstance(whole, int) else None
    left_s: float | None = 0.0
    if state in OPEN:
        own = own_left_s(cell, step, steps)
        since_s = silent_s if state == "running" else 0.0
        left_s = expected_s(cell, done) if own is None else max(0.0, own - since_s)
    return Progress(cell, state, step, steps, left_s, silent_s)


def state_of(cell: Cell, silent_s: float) -> str:
    again = cell.status in ("failed", "stopped") and started_again(cell.folder)
    if cell.status != "unfinished" and not again:
        return cell.status
    return "silent" if silent_s > max(SILENT_S, SILENT_STEPS * (pace_s(cell) or 0.0)) else "running"


def step_of(cell: Cell) -> int:
    """Outer steps that are done, by `metrics.csv`."""
    return int(last) if math.isfinite(last := _last(cell, "step")) else 0


def pace_s(cell: Cell) -> float | None:
    """Seconds for each outer step so far, evaluation included; None before the first."""
    step, elapsed_s = step_of(cell), _last(cell, "time/elapsed_s")
    if step == 0 or not math.isfinite(elapsed_s):
        return None
    evaluation = cell.metrics["time/eval_s"].iloc[1:].sum() if "time/eval_s" in cell.metrics else 0.0
    return (elapsed_s + float(evaluation)) / step


def own_left_s(cell: Cell, step: int, steps: int | None) -> float | None:
    """Seconds from the last outer step to the end, at the pace so far; None before the first. A limit of `budget` ends it."""
    pace = pace_s(cell)
    if pace is None or steps is None:
        return None
    left_s = pace * max(0, steps - step)
    for name, limit in (cell.config.get("budget") or {}).items():
        used = _last(cell, name)  # the limits have the names of the axes
        if isinstance(limit, int | float) and used > 0:
            left_s = min(left_s, max(0.0, limit - used) / used * pace * step)
    return left_s


def all_left_s(found: Sequence[Progress]) -> float | None:
    """Seconds until all are over, if as many run at a time as now; None where one is not known."""
    left = [p.left_s for p in found if p.state in OPEN]
    known = [seconds for seconds in left if seconds is not None]
    if len(known) < len(left):
        return None
    at_once = max(1, sum(p.state == "running" for p in found))
    return max(sum(known) / at_once, max(known, default=0.0))


def _last(cell: Cell, metric: str) -> float:
    """The last value of a metric that is not blank; NaN where there is none."""
    if metric not in cell.metrics:
        return math.nan
    values = cell.metrics[metric].dropna()
    return float(values.iloc[-1]) if len(values) else math.nan
