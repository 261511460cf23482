"""The notebooks run from top to bottom: `analysis` on a sweep, `paper` on the published reports."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from synthetic import write_cell


def outputs_of(name, *further):
    """Everything that the notebook shows, when it is run in its folder, with `further` cells at its end."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept is the source
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in further]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(outputs):
    return [o for o in outputs if "image/svg+xml" in o.get("data", {})]


def tables(outputs):
    return [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]


def test_each_notebook_is_run_here():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {"analysis", "paper"}


def test_the_analysis_of_a_sweep(tmp_path, monkeypatch):
    for algo, seconds in (("grpo", 100.0), ("dash", 50.0)):
        for seed in (0, 1):
            overrides = [f"algo={algo}", f"seed={seed}"]
            write_cell(tmp_path / ",".join(overrides), overrides, seconds=seconds)
    monkeypatch.setenv("DASH_EXP_SWEEP", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    outputs = outputs_of("analysis")
    assert len(pictures(outputs)) >= 10
    shown = "".join(tables(outputs))
    assert "grpo" in shown
    assert "50.0" in shown  # seconds of dash


def test_the_paper_beside_our_runs(tmp_path, monkeypatch):
    """On the published reports, a further one of a sweep with two of three arms, and one of another sweep whose name begins in
    the same way.
    """
    for folder in (ROOT / "docs" / "results").iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(tmp_path / "efficiency_math", tmp_path / "efficiency_math-mine")
    table = pd.read_csv(tmp_path / "efficiency_math" / "cells.csv")
    table.loc[table["arm"] == "no_gf", "status"] = "waiting"
    table.to_csv(tmp_path / "efficiency_math-mine" / "cells.csv", index=False)
    (tmp_path / "efficiency_math-mine" / "figures" / "curve-steps-reward-mean.svg").unlink()
    shutil.copytree(tmp_path / "off_policy", tmp_path / "kl_schedules")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("DASH_EXP_RESULTS", str(tmp_path))
    small = "[name for name in changes_of({}, 'time_h') if not name.startswith('here') or name.startswith('here, 1M')]"
    sources = f"print({small.format(3)}, {small.format(6)})"
    numbers = "print([changes_of(6, column)['here, 1M']['No-KL'].value for column in ('time_h', 'math_pct')])"
    outputs = outputs_of("paper", sources, numbers, "print(changes_of(3, 'time_h')['paper, 0.5B']['DASH'])")
    shown = tables(outputs)
    assert len(shown) == 6
    cells = pd.read_csv(tmp_path / "efficiency_math" / "cells.csv").set_index("arm")
    seconds = cells.loc["grpo", "time/elapsed_s"].mean()
    accuracy = 100 * cells.loc["dash", "accuracy/out_dist/final"].mean()
    for value in ("38.9", "6.6", f"{seconds:.1f} (", f"{accuracy:.1f} ("):  # the paper's hours, ours, and an accuracy
        assert f"<td>{value}" in shown[2]
    assert len(pictures(outputs)) >= 6 + 1 + 4 + 2 + 3  # the tables, the bars, and curves with a legend for figures 3, 4 and 6
    names, values, paper = [o["text"].strip() for o in outputs[-3:]]
    ours = ["here, 1M, efficiency_math", "here, 1M, efficiency_math-mine"]
    assert names == f"{['paper, 0.5B', *ours]} {['paper, 0.5B', 'paper, 1.5B', 'paper, 3B', 'here, 1M']}"
    kl = pd.read_csv(tmp_path / "kl" / "cells.csv").set_index(["arm", "seed"]).sort_index()
    without, with_kl = kl.loc["kl.coef=0"], kl.loc["kl.coef=0.04"]
    times = np.log(without["time/elapsed_s"] / with_kl["time/elapsed_s"]).mean()
    points = 100 * (without["accuracy/in_dist/final"] - with_kl["accuracy/in_dist/final"]).mean()
    assert json.loads(values) == pytest.approx([np.exp(times), points])
    assert float(paper) == pytest.approx(6.6 / 38.9)
