"""How long a sweep still takes."""

from pathlib import Path

from dash_exp.commands.sweep.progress import left_s, progress_line
from dash_exp.results.cells import Cell


def cell(overrides: str, status: str, total_s: float = 0.0) -> Cell:
    result = {"status": status, "time/total_s": total_s} if status != "waiting" else {}
    return Cell(Path(overrides), dict(o.split("=") for o in overrides.split()), status, result=result)


def test_how_long_the_rest_takes_comes_from_the_cells_that_are_done():
    cells = [cell("algo=grpo seed=0", "done", 100), cell("algo=dash seed=0", "done", 40), cell("algo=sft seed=0", "failed", 1)]
    cells += [cell("algo=grpo seed=1", "waiting"), cell("algo=dash seed=1", "waiting"), cell("algo=new seed=1", "waiting")]
    assert left_s(cells) == 100 + 40 + (100 + 40) / 2
    assert progress_line(cells, 1) == "sweep: 2 of 6 cells done, 1 failed; about 3:30 left"
    assert progress_line(cells, 2).endswith("about 1:45 left")
    assert progress_line(cells[:2], 1) == "sweep: 2 of 2 cells done"
    assert left_s(cells[2:]) == 0  # nothing to go by
