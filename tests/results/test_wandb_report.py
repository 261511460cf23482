"""Reports in W&B: the real SDK against a stand-in server on loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from wandb_helpers import FEW, PLACE, assert_arrived, assert_same, attempt, environment, upload
from wandb_server import ENTITY

from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder, wandb_report

pytestmark = pytest.mark.usefixtures("one_thread", "bounded")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, recorder) -> Path:
    """A sweep of two cells by the real program, offline; whatever it connects to is counted."""
    folder = tmp_path_factory.mktemp("sweep")
    variables = environment(folder, WANDB_BASE_URL=recorder.url, HTTPS_PROXY=recorder.url, HTTP_PROXY=recorder.url)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    command = [sys.executable, str(ROOT / "train.py"), "-m", "algo=grpo,dash", "kl.coef=0", *FEW]
    command.append("hydra.callbacks.ledger.report=null")
    done = subprocess.run(
        command,
        cwd=folder,
        env=inherited | {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "multirun" / "small"


@pytest.fixture
def copied(sweep, tmp_path) -> Path:
    """The sweep in another place, as if it had been copied from the machine that had no network."""
    return Path(shutil.copytree(sweep, tmp_path / "elsewhere [1]" / "small", symlinks=True))


def test_an_offline_sweep_waits_for_no_server(sweep, recorder, offline):
    """Neither the runs nor the request for a report: they get no answer, and ask no one."""
    found = cells.load([sweep])
    assert [c.status for c in found.cells] == ["done", "done"]
    text = wandb_report.publish(found, PLACE, "")
    assert "not logged in" in text
    assert f"wandb sync --entity {ENTITY} --project dash_exp {sweep}/*/wandb/offline-run-*" in text
    assert "None of these runs needs an upload" in wandb_report.publish(cells.Results([]), PLACE, "")
    assert recorder.connections == 0


def test_an_offline_sweep_is_uploaded_read_back_and_reported(copied, server, online, tmp_path):
    assert len(upload(copied, server, tmp_path)) == 1
    folders = sorted(p for p in copied.iterdir() if run_folder.is_run(p))
    assert len(server.runs) == len(folders) == 2
    for folder in folders:
        assert_arrived(server, folder, "small")
    columns = [server.runs[run_folder.wandb_id(f)].config["overrides"] for f in folders]
    assert [(c["algo"], c["kl_coef"]) for c in columns] == [("dash", "0"), ("grpo", "0")]
    assert upload(copied, server, tmp_path) == []  # nothing waits any more

    mine, theirs = cells.load([copied]), cells.load([f"wandb:{PLACE}/small"])
    in_their_order = cells.Results(sorted(mine.cells, key=lambda cell: [c.name for c in theirs.cells].index(cell.name)))
    assert_same(in_their_order, theirs)
    assert len(cells.load([copied, f"wandb:{PLACE}/small", f"wandb:{PLACE}"]).cells) == 2  # each run once

    text = wandb_report.publish(mine, PLACE, "| arm | accuracy |\n|---|---|\n| dash | 1 |")
    (report,) = server.reports
    assert f"{server.url}/{PLACE}/reports/" in text and report["id"] in text
    assert "wandb sync" not in text
    assert_shows_the_comparison(report)
    assert "saved the report" in wandb_report.publish(theirs, PLACE, "") and len(server.reports) == 2  # from W&B to W&B
    logged = {key for r in server.runs.values() for row in r.history for key in row}
    summaries = {key for r in server.runs.values() for key in r.summary}
    plots = [p["config"] for p in panels_of(report)]
    assert {p["xAxis"] for p in plots if "xAxis" in p} | {m for p in plots if "xAxis" in p for m in p["metrics"]} <= logged
    assert {m.removeprefix("summary_metrics.") for p in plots if "xAxis" not in p for m in p["metrics"]} <= summaries


def panels_of(report: dict) -> list[dict]:
    (grid,) = [b for b in json.loads(report["spec"])["blocks"] if b["type"] == "panel-grid"]
    return grid["metadata"]["panelBankSectionConfig"]["panels"]


def assert_shows_the_comparison(report: dict) -> None:
    assert (report["entityName"], report["projectName"], report["displayName"]) == (ENTITY, "dash_exp", "Comparison: small")
    blocks = json.loads(report["spec"])["blocks"]
    assert [b["content"] for b in blocks if b["type"] == "markdown-block"] == ["| arm | accuracy |\n|---|---|\n| dash | 1 |"]
    (grid,) = [b for b in blocks if b["type"] == "panel-grid"]
    (runset,) = grid["metadata"]["runSets"]
    assert runset["project"]["name"] == "dash_exp"
    (chosen,) = runset["filters"]["filters"]
    assert (chosen["key"], chosen["op"], chosen["value"]) == ({"section": "run", "name": "group"}, "IN", ["small"])
    assert runset["grouping"] == [{"section": "config", "name": "overrides.value.algo"}]
    lines = [p["config"] for p in panels_of(report) if p["viewType"] == "Run History Line Plot"]
    assert [(p["xAxis"], p["metrics"][0]) for p in lines] == [
        ("step", "reward/mean"),
        ("step", "accuracy/in_dist"),
        ("step", "accuracy/out_dist"),
        ("step", "advantage/abs_mean"),
        ("step", "filter/kept_fraction"),
        ("step", "length/mean_tokens"),
        ("time/elapsed_s", "reward/mean"),
        ("time/elapsed_s", "accuracy/in_dist"),
        ("time/elapsed_s", "accuracy/out_dist"),
    ]
    bars = [p["config"]["metrics"] for p in panels_of(report) if p["viewType"] == "Bar Chart"]
    assert bars[0] == ["summary_metrics.accuracy/in_dist/final", "summary_metrics.accuracy/out_dist/final"]
    assert bars[1] == [f"summary_metrics.time/{phase}_s" for phase in ("sample", "score", "update", "sync", "eval")]


def test_a_report_is_refused_or_told_what_is_missing(server, online, monkeypatch, cell, tmp_path):
    mine = cells.load([cell])
    for bad in ("team", "team/", "/project", "team/project/more"):
        with pytest.raises(UserError, match="is not of the form ENTITY/PROJECT"):
            wandb_report.publish(mine, bad, "")
    text = wandb_report.publish(mine, PLACE, "")
    assert "none of the 1 run(s)" in text and "their folders have nothing to upload: seed=0" in text
    attempt(cell, [0])
    with pytest.raises(UserError, match="no project team/other"):
        wandb_report.publish(mine, f"{ENTITY}/other", "")
    other = Path(shutil.copytree(cell, cell.parent / "seed=1", ignore=shutil.ignore_patterns("wandb*")))
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(other, [0])
    monkeypatch.delenv("WANDB_MODE")
    text = wandb_report.publish(cells.load([other]), PLACE, "")
    assert "none of the 1 run(s)" in text and "wandb sync" in text and not server.reports
    text = wandb_report.publish(cells.load([cell.parent]), PLACE, "")
    assert "shows 1 of 2 run(s)" in text and f"wandb sync --entity {ENTITY} --project dash_exp" in text
    assert len(server.reports) == 1
