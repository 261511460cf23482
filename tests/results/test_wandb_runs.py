"""Runs read from W&B: the real SDK against a stand-in server on loopback."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import wandb
from wandb_helpers import PLACE, assert_same, attempt, end_service

from dash_exp.core.errors import UserError
from dash_exp.results import cells, run_folder, wandb_runs

pytestmark = pytest.mark.usefixtures("one_thread", "bounded")


def test_what_cannot_be_read_back_is_said(server, online, monkeypatch, cell, capsys):
    def refused(path: str) -> str:
        with pytest.raises(UserError) as error:
            cells.load([path])
        return str(error.value)

    assert "Write wandb:ENTITY/PROJECT/GROUP" in refused("wandb:team")
    assert f"no project {PLACE}" in refused(f"wandb:{PLACE}")
    attempt(cell, [0])
    assert "contains no runs" in refused(f"wandb:{PLACE}/large")
    wandb.init(project="dash_exp", name="other", group="foreign", dir=cell, settings=wandb.Settings(silent=True)).finish()
    assert "contains no runs of dash_exp" in refused(f"wandb:{PLACE}/foreign")
    assert len(cells.load([f"wandb:{PLACE}"]).cells) == 1
    assert "skipped, because they are not runs of dash_exp: other (" in capsys.readouterr().err
    (cell / run_folder.ID_FILE).unlink()
    attempt(cell, [0])
    assert "contains two runs of the cell seed=0" in refused(f"wandb:{PLACE}/small")
    monkeypatch.setattr(wandb_runs, "TIMEOUT_S", 2)
    end_service()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    end_service()
    assert "Check the network" in refused(f"wandb:{PLACE}")
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
