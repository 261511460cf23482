"""The real W&B SDK against a stand-in server on loopback: what arrives there, what is read back, and the report."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
import wandb
import yaml
from conftest import ROOT, SMALL, composed
from wandb_server import ENTITY, KEY, WandbServer

from dash_exp.commands import run
from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder, wandb_logger, wandb_report, wandb_runs
from dash_exp.training.record import RunRecord

# Runs as small as these are fastest with one thread, above all where other programs compute as well.
FEW = [o for o in SMALL if o != "logger=csv"] + ["logger=wandb"]
PLACE = f"{ENTITY}/dash_exp"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def bounded():
    """No test waits for longer than this, whatever the SDK waits for."""

    def stop(*_):
        raise TimeoutError("the test took too long")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)


class Recorder:
    """A port on loopback that counts who connects and answers nothing."""

    def __init__(self):
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture(scope="module")
def recorder():
    found = Recorder()
    with socket.create_connection(found.socket.getsockname(), timeout=10) as own:
        own.recv(1)  # nothing, when it has been counted and closed
    assert found.connections == 1
    found.connections = 0
    yield found
    found.socket.close()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """W&B's own files in `folder`, no reports about its errors, and no login but that of `more`."""
    places = {f"WANDB_{name}_DIR": str(folder / "of_wandb") for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    places["WANDB_DIR"] = str(folder)  # where the SDK puts what belongs to no run
    bounds = {"WANDB_HTTP_TIMEOUT": "10", "WANDB_INIT_TIMEOUT": "30", "WANDB_ERROR_REPORTING": "false"}
    return places | bounds | {"NETRC": str(folder / "netrc")} | more


def end_service() -> None:
    """End the SDK's own process. It may wait there for an answer of a server that is gone, for longer than tests should."""
    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(20)


def enter(monkeypatch, values: dict[str, str]) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    end_service()  # it keeps the settings that it read first


@pytest.fixture
def server():
    with WandbServer() as found:
        yield found
        end_service()  # while it still answers


@pytest.fixture
def online(server, monkeypatch, tmp_path):
    enter(monkeypatch, environment(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY))


@pytest.fixture
def offline(recorder, monkeypatch, tmp_path):
    enter(monkeypatch, environment(tmp_path, WANDB_BASE_URL=recorder.url, HTTPS_PROXY=recorder.url, HTTP_PROXY=recorder.url))
    yield
    end_service()


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


def upload(folder: Path, server: WandbServer, tmp_path: Path) -> list[str]:
    """Run the commands that upload the runs of this folder, as they are told to the user."""
    commands = wandb_report.upload_commands(cells.load([folder]), *PLACE.split("/"))
    program = f"{shlex.quote(sys.executable)} -m wandb"
    variables = os.environ | environment(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    for command in commands:
        assert command.startswith("wandb sync ")
        done = subprocess.run(
            command.replace("wandb", program, 1),
            shell=True,
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and "Finished syncing" in done.stderr, done.stderr
    return commands


def numbers(folder: Path) -> dict[str, float]:
    return {k: v for k, v in run_folder.read_result(folder).items() if isinstance(v, (int, float))}


def assert_arrived(server: WandbServer, folder: Path, group: str | None) -> None:
    """Everything of this finished run is on the server."""
    arrived = server.runs[run_folder.wandb_id(folder)]
    assert (arrived.entity, arrived.project, arrived.state) == (ENTITY, "dash_exp", "finished")
    assert arrived.attributes.get("groupName") == group
    rows = pd.read_csv(folder / "metrics.csv").to_dict("records")
    kept = [{k: v for k, v in row.items() if k in results_columns(folder)} for row in arrived.history]
    assert kept == [{k: v for k, v in row.items() if v == v} for row in rows]  # a blank is not sent
    assert [row["_step"] for row in arrived.history] == [row["step"] for row in rows]
    assert {name: arrived.summary.get(name) for name in numbers(folder)} == numbers(folder)
    for name in run_folder.RECORD_FILES:
        if (folder / name).exists():
            assert arrived.files[f"record/{name}"] == (folder / name).read_bytes()
    assert arrived.config["batch"]["prompts"] == 8


def results_columns(folder: Path) -> set[str]:
    return set(pd.read_csv(folder / "metrics.csv", nrows=0).columns)


def assert_same(mine: cells.Results, theirs: cells.Results) -> None:
    """The same tables, cell by cell."""
    pd.testing.assert_frame_equal(mine.table(), theirs.table())
    for one, other in zip(mine.cells, theirs.cells, strict=True):
        pd.testing.assert_frame_equal(one.metrics, other.metrics)
        pd.testing.assert_frame_equal(one.problems, other.problems)
        assert (one.config, one.overrides, one.status) == (other.config, other.overrides, other.status)


def test_an_offline_sweep_waits_for_no_server(sweep, recorder, offline):
    """Neither the runs nor the request for a report: they get no answer, and ask no one."""
    found = cells.load([sweep])
    assert [c.status for c in found.cells] == ["done", "done"]
    text = wandb_report.publish(found, PLACE, "")
    assert "not logged in" in text
    assert f"wandb sync --entity {ENTITY} --project dash_exp {sweep}/*/wandb/offline-run-*" in text
    assert "None of these runs waits" in wandb_report.publish(cells.Results([]), PLACE, "")
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


def test_the_same_cell_run_again_is_the_same_run(server, online, monkeypatch, tmp_path):
    """Online: a run that fails after its first step, and then runs to its end, has its rows once and the record of its end."""
    cell = tmp_path / "small" / "algo=dash,k=[1]"  # brackets mean something in patterns
    (cell / ".hydra").mkdir(parents=True)
    (cell / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["algo=dash", "kl.coef=0", "seed=3"]))
    write = RunRecord.on_train_epoch_end

    def fail(self, trainer, module):
        write(self, trainer, module)
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(RunRecord, "on_train_epoch_end", fail)
        with pytest.raises(RuntimeError, match="the disk is full"):
            run.run(composed(*FEW), cell, in_sweep=True)
    (arrived,) = server.runs.values()
    assert (arrived.state, [row["step"] for row in arrived.history]) == ("failed", [0, 1])
    assert json.loads(arrived.files["record/result.json"])["error"] == "RuntimeError: the disk is full"
    assert_same(cells.load([cell.parent]), cells.load([f"wandb:{PLACE}/small"]))

    run.run(composed(*FEW), cell, in_sweep=True)
    assert list(server.runs) == [arrived.id] == [run_folder.wandb_id(cell)]
    assert [(row["_step"], row["step"]) for row in arrived.history] == [(0, 0), (1, 1), (2, 2)]
    assert (arrived.state, arrived.attributes["displayName"]) == ("finished", cell.name)
    assert arrived.config["overrides"] == {"algo": "dash", "kl_coef": "0", "seed": "3"}
    assert (arrived.summary["status"], arrived.summary["steps"]) == ("done", 2)
    assert any("completions" in row for row in arrived.history)
    assert_same(cells.load([cell.parent]), cells.load([f"wandb:{PLACE}/small"]))


def attempt(cell: Path, steps: list[int], status: str = "done") -> None:
    """What a run of the program does with W&B, without the training."""
    tracker = wandb_logger.wandb_logger(cell, cell.name, "small", {"batch": {"prompts": 8}}, "dash_exp")
    columns = ["step", "reward/mean", "time/elapsed_s", "tokens/sampled", "policy/version"]
    (cell / "metrics.csv").write_text(",".join(columns) + "\n")
    for step in steps:
        row = dict(zip(columns, (step, step / 8, step * 0.5, 100, step), strict=True))
        tracker.log_metrics(row, step=step)
        with (cell / "metrics.csv").open("a") as file:
            file.write(",".join(map(str, row.values())) + "\n")
    (cell / "result.json").write_text(json.dumps({"status": status, "steps": len(steps)}))
    wandb_logger.finish(tracker, cell)


@pytest.fixture
def cell(tmp_path) -> Path:
    folder = tmp_path / "small" / "seed=0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("batch: {prompts: 8}\nseed: 0\n")
    return folder


def test_an_offline_attempt_that_was_not_uploaded_leaves_nothing_to_upload(server, online, monkeypatch, cell, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(cell, [0, 1], status="stopped")
    first = run_folder.wandb_id(cell)
    attempt(cell, [0, 1, 2])
    assert run_folder.wandb_id(cell) == first
    assert len(list(cell.glob("wandb/offline-run-*"))) == 1
    upload(cell, server, tmp_path)
    assert_arrived(server, cell, "small")


@pytest.mark.parametrize("whole", [True, False])
def test_rows_that_were_uploaded_are_not_uploaded_again(server, online, monkeypatch, cell, tmp_path, whole):
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(cell, [0, 1], status="stopped")
    upload(cell, server, tmp_path)
    if not whole:  # what the upload of a run that was killed leaves, whose last record is torn
        (marker,) = cell.glob("wandb/offline-run-*/*.synced")
        marker.unlink()
    attempt(cell, [0, 1, 2, 3])
    upload(cell, server, tmp_path)
    assert_arrived(server, cell, "small")
    (found,) = cells.load([f"wandb:{PLACE}/small"]).cells
    assert (found.status, list(found.metrics["step"])) == ("done", [0, 1, 2, 3])


def test_a_run_folder_keeps_its_id_when_it_moves_and_shares_it_with_no_other(cell, tmp_path):
    first, _ = wandb_logger.identity(cell)
    moved = cell.rename(tmp_path / "moved")
    assert wandb_logger.identity(moved) == (first, -1)
    cell.mkdir()
    assert wandb_logger.identity(cell)[0] != first


def test_what_cannot_be_read_back_is_said(server, online, monkeypatch, cell, capsys):
    def refused(path: str) -> str:
        with pytest.raises(UserError) as error:
            cells.load([path])
        return str(error.value)

    assert "Write wandb:ENTITY/PROJECT/GROUP" in refused("wandb:team")
    assert f"no project {PLACE}" in refused(f"wandb:{PLACE}")
    attempt(cell, [0])
    assert "holds no runs" in refused(f"wandb:{PLACE}/large")
    wandb.init(project="dash_exp", name="other", group="foreign", dir=cell, settings=wandb.Settings(silent=True)).finish()
    assert "holds no runs of this program" in refused(f"wandb:{PLACE}/foreign")
    assert len(cells.load([f"wandb:{PLACE}"]).cells) == 1
    assert "left out, because they have no record of this program: other (" in capsys.readouterr().err
    (cell / run_folder.ID_FILE).unlink()
    attempt(cell, [0])
    assert "holds two runs of the cell seed=0" in refused(f"wandb:{PLACE}/small")
    monkeypatch.setattr(wandb_runs, "TIMEOUT_S", 2)
    end_service()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    end_service()
    assert "Check network" in refused(f"wandb:{PLACE}")
    monkeypatch.delenv("WANDB_API_KEY")
    assert "not logged in" in refused(f"wandb:{PLACE}")


def test_cells_come_back_in_the_order_of_their_list_those_that_wait_included(server, online, cell):
    listed = [{"folder": f"seed={seed}", "overrides": [f"seed={seed}"]} for seed in (2, 0, 1)]
    (cell.parent / "sweep.json").write_text(json.dumps({"cells": listed}))
    attempt(cell, [0, 1])
    other = Path(shutil.copytree(cell, cell.parent / "seed=1", ignore=shutil.ignore_patterns("wandb*")))
    attempt(other, [0])
    theirs = cells.load([f"wandb:{PLACE}/small"])
    assert [(c.name, c.status) for c in theirs.cells] == [("seed=2", "waiting"), ("seed=0", "done"), ("seed=1", "done")]
    assert_same(cells.load([cell.parent]), theirs)


def test_a_cell_that_cannot_be_built_is_recorded_too(server, online, tmp_path):
    cell = tmp_path / "small" / "broken"
    with pytest.raises(Exception, match="nothing to train on"):
        run.run(composed(*FEW, "data.train=null"), cell, in_sweep=True)
    (arrived,) = server.runs.values()
    assert (arrived.state, arrived.summary["status"], arrived.history) == ("failed", "failed", [])
    assert_same(cells.load([cell.parent]), cells.load([f"wandb:{PLACE}/small"]))


def test_a_report_is_refused_or_told_what_is_missing(server, online, monkeypatch, cell, tmp_path):
    mine = cells.load([cell])
    for bad in ("team", "team/", "/project", "team/project/more"):
        with pytest.raises(UserError, match="is not ENTITY/PROJECT"):
            wandb_report.publish(mine, bad, "")
    text = wandb_report.publish(mine, PLACE, "")
    assert "none of the 1 run(s)" in text and "nothing in their folders that waits for an upload: seed=0" in text
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
