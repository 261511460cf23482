"""Runs of the whole program: one that breaks off, and whether the records of two runs are the same."""

import pandas.testing
import pytest

from dash_exp.commands import run
from dash_exp.results import cells
from dash_exp.training.module import PolicyModule


class PowerCutError(Exception):
    pass


def broken_after(folder, cfg, step, monkeypatch):
    """A run that ends without a word of its own in the outer step after `step`."""
    with monkeypatch.context() as patch:
        finish_row = PolicyModule.finish_row

        def breaks(module):
            if module.current_epoch == step:
                raise PowerCutError
            return finish_row(module)

        patch.setattr(PolicyModule, "finish_row", breaks)
        with pytest.raises(PowerCutError):
            run.run(cfg, folder)


def same(folder, other):
    """Metrics and result of two runs, times aside."""
    a, b = cells.load_cell(folder), cells.load_cell(other)
    columns = [c for c in a.metrics if not c.startswith("time/") and c != "seconds"]
    pandas.testing.assert_frame_equal(a.metrics[columns], b.metrics[columns], check_exact=True)
    pandas.testing.assert_frame_equal(a.problems, b.problems)
    assert {k: v for k, v in a.result.items() if "time/" not in k} == {k: v for k, v in b.result.items() if "time/" not in k}
