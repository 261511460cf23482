"""What the tests of W&B share: the environment of the SDK, uploads, and comparisons with what arrived on the server."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import wandb
from conftest import SMALL
from wandb_server import ENTITY, KEY, WandbServer

from dash_exp.results import cells, run_folder, wandb_logger, wandb_report

# With one thread such small runs are fastest, above all next to other programs.
FEW = [o for o in SMALL if o != "logger=csv"] + ["logger=wandb"]
PLACE = f"{ENTITY}/dash_exp"


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
    run_folder.write_result(cell, {"status": status, "steps": len(steps)})
    wandb_logger.finish(tracker, cell, run_folder.read_result(cell))
