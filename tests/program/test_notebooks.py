"""The notebooks run from top to bottom: `analysis` on a sweep, `paper` on the published reports."""

import nbformat
import pandas as pd
from conftest import ROOT
from nbclient import NotebookClient
from synthetic import write_cell


def outputs_of(name):
    """Everything that the notebook shows, when it is run in its folder."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept is the source
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


def test_the_paper_beside_our_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    outputs = outputs_of("paper")
    shown = tables(outputs)
    assert len(shown) == 6
    cells = pd.read_csv(ROOT / "docs/results/efficiency_math/cells.csv").set_index("arm")
    seconds = cells.loc["grpo", "time/elapsed_s"].mean()
    accuracy = 100 * cells.loc["dash", "accuracy/out_dist/final"].mean()
    for value in ("38.9", "6.6", f"{seconds:.1f} (", f"{accuracy:.1f} ("):  # the paper's hours, ours, and an accuracy
        assert f"<td>{value}" in shown[2]
    # One for each table, the bars, and curves with a legend for each of the figures 3, 4 and 6.
    assert len(pictures(outputs)) >= 6 + 1 + 4 + 2 + 3
