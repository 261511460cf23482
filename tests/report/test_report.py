"""Reports of sweeps with missing parts."""

import json
import shutil

import pytest
from reports import warnings_of

from dash_exp import report
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_nothing_but_waiting_cells(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": [{"folder": "a", "overrides": ["algo=dash"]}]}))
    page = report.write(load([tmp_path]), tmp_path / "report")
    assert "not started yet" in page.read_text()


@pytest.mark.parametrize("lost", ["metrics.csv", "problems.csv", "completions", ".hydra", "config.yaml", "result.json"])
def test_a_report_of_what_is_left(sweep, lost):
    for cell in sweep.glob("algo=*"):
        shutil.rmtree(cell / lost) if (cell / lost).is_dir() else (cell / lost).unlink()
    assert report.write(load([sweep]), sweep / "report").is_file()
    if lost in ("metrics.csv", "problems.csv", "config.yaml"):
        assert f"{lost} is missing or unreadable in 6 done cells" in warnings_of(sweep)
