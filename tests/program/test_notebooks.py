"""The notebooks run from top to bottom on a sweep."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from synthetic import write_cell

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_and_draws(path, tmp_path, monkeypatch):
    for algo, seconds in (("grpo", 100.0), ("dash", 50.0)):
        for seed in (0, 1):
            overrides = [f"algo={algo}", f"seed={seed}"]
            write_cell(tmp_path / ",".join(overrides), overrides, seconds=seconds)
    monkeypatch.setenv("DASH_EXP_SWEEP", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept is the source
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    assert len(pictures) >= 10
    tables = "".join(o["data"]["text/plain"] for o in outputs if "text/html" in o.get("data", {}))
    assert "grpo" in tables
    assert "50.0" in tables  # seconds of dash
