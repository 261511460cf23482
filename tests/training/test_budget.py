"""A run ends after the outer step that uses up what it was given. Matched budgets: `test_sweep.py`."""

import pytest
from conftest import SMALL, composed

from dash_exp.commands import run
from dash_exp.results import cells


@pytest.mark.parametrize(
    ("limit", "steps"), [("sampled_tokens=1", 1), ("optimizer_steps=2", 2), ("seconds=1e-6", 1), ("seconds=1e6", 3)]
)
def test_a_budget_ends_a_run(tmp_path, limit, steps):
    run.run(composed(*SMALL, "steps=3", "eval.every=3", f"budget.{limit}"), tmp_path)
    cell = cells.load_cell(tmp_path)
    assert (cell.status, cell.result["steps"], len(cell.metrics)) == ("done", steps, steps + 1)
    assert cell.result["stopped_by"] == (limit.partition("=")[0] if steps < 3 else None)
    assert cell.metrics["accuracy/in_dist"].notna().tolist() == [True, *[False] * (steps - 1), True]
    assert len(list((tmp_path / "completions").iterdir())) == steps
