"""Runs of the whole program: one that breaks off, and whether the records of two runs are the same."""

import json

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


def record(folder):
    """Metrics, result and completions, times aside."""
    cell = cells.load_cell(folder)
    metrics = cell.metrics[[c for c in cell.metrics if not c.startswith("time/") and c != "seconds"]]
    result = {k: v for k, v in cell.result.items() if "time/" not in k and k != "device" and v is not None}
    rows = [
        {"step": int(file.stem.removeprefix("step_")), **json.loads(line)}
        for file in sorted((folder / "completions").iterdir())
        for line in file.open()
    ]
    return metrics, result, [row | {"advantage": pytest.approx(row["advantage"], abs=1e-5)} for row in rows]


def alike(folder, other):
    """To rounding errors: of sums in another order, and of the policies that were trained with them. Where a draw
    falls on the border of two tokens but for rounding (6e-9 away, in the one that was looked at), the other one may be sampled:
    in one completion at most, whose step is then left out of the metrics.
    """
    (metrics, result, rows), (others_metrics, others_result, others_rows) = record(folder), record(other)
    exact = ["loss/total", "grad/norm", "kl/ref_nats_per_token", "reward/mean", "accuracy/in_dist", "accuracy/out_dist"]
    if metrics["optimizer/steps"][1] == 1:  # all of it with the same policy
        pandas.testing.assert_frame_equal(metrics[exact][:2], others_metrics[exact][:2], rtol=2e-6, atol=1e-7)
    assert len(rows) == len(others_rows)
    differ = [row["step"] for row, others in zip(rows, others_rows, strict=True) if row != others]
    assert len(differ) <= 1, differ
    metrics, others_metrics = (m[~m["step"].isin(differ)] for m in (metrics, others_metrics))
    pandas.testing.assert_frame_equal(metrics, others_metrics, rtol=1e-3, atol=1e-4)
    assert result.keys() == others_result.keys()
    for name, value in result.items():
        assert value == (pytest.approx(others_result[name], rel=1e-3) if isinstance(value, float) else others_result[name])
    assert (folder / "problems.csv").read_bytes() == (other / "problems.csv").read_bytes()
