"""Logging to W&B with the real SDK: offline, and against a stand-in server on loopback."""

import json
from pathlib import Path

import pytest
import wandb
import yaml
from conftest import SMALL, composed
from wandb_helpers import FEW, PLACE, assert_arrived, assert_same, attempt, enter, upload

from dash_exp.commands import run
from dash_exp.core.metrics import read_metrics
from dash_exp.results import cells, run_folder, wandb_logger
from dash_exp.training.module import PolicyModule
from dash_exp.training.record import RunRecord

pytestmark = pytest.mark.usefixtures("one_thread", "bounded")


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_login_is_found_where_wandb_keeps_it(monkeypatch, tmp_path):
    assert not wandb_logger.logged_in()
    (tmp_path / "netrc").write_text("machine example.org login user password secret\n")
    assert not wandb_logger.logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_logger.logged_in()  # the public server under its old name
    (tmp_path / "netrc").write_text("machine api.forge.coreweave.com login user password secret\n")
    assert wandb_logger.logged_in()  # and under the one that `wandb login` writes today
    (tmp_path / "netrc").write_text("machine localhost:8081 login user password secret\n")
    assert not wandb_logger.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8081")
    assert wandb_logger.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    assert not wandb_logger.logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert wandb_logger.logged_in()


def test_without_a_login_a_run_is_recorded_offline_with_everything(monkeypatch, tmp_path):
    """Arms of a sweep share the group and are named by what differs; metrics, config and completions are logged."""
    started, logged = {}, []
    init = wandb.init

    def spy(**settings):
        started.update(settings)
        experiment = init(**settings)
        log = experiment.log
        experiment.log = lambda data, **kwargs: (logged.append(data), log(data, **kwargs))
        return experiment

    monkeypatch.setattr(wandb, "init", spy)
    arm = tmp_path / "algo=dash,kl.coef=0"
    run.run(composed(*[o for o in SMALL if o != "logger=csv"], "logger=wandb"), arm, in_sweep=True)
    assert (started["mode"], started["group"], started["name"]) == ("offline", "small", "algo=dash,kl.coef=0")
    assert started["config"]["batch"]["prompts"] == 8
    assert list(arm.glob("wandb/offline-run-*/*.wandb"))
    assert [d["step"] for d in logged if "step" in d] == [0, 1, 2]
    (table,) = [d["completions"] for d in logged if "completions" in d]
    assert {"prompt", "completion", "reward", "advantage", "kept", "policy_version"} <= set(table.columns)
    assert len(table.data) == 32
    assert (arm / "metrics.csv").exists()


def test_a_run_that_goes_on_from_a_snapshot_gives_the_tracker_every_row_once(monkeypatch, tmp_path):
    """It breaks in its fourth step, after a snapshot of the second. What the first attempt left to upload is gone."""
    settings = composed(*[o for o in SMALL if o != "logger=csv"], "logger=wandb", "steps=5", "resume_every=2")
    finish_row = PolicyModule.finish_row

    def breaks(module):
        if module.current_epoch == 3:
            raise RuntimeError("power cut")
        return finish_row(module)

    monkeypatch.setattr(PolicyModule, "finish_row", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        run.run(settings, tmp_path, in_sweep=True)
    monkeypatch.setattr(PolicyModule, "finish_row", finish_row)
    logged, init = [], wandb.init

    def spy(**kwargs):
        experiment = init(**kwargs)
        log = experiment.log
        experiment.log = lambda data, **more: (logged.append(data), log(data, **more))
        return experiment

    monkeypatch.setattr(wandb, "init", spy)
    result = run.run(settings, tmp_path, in_sweep=True)
    assert [d["step"] for d in logged if "step" in d] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [0, 1, 2, 3, 4, 5]
    assert result["completions/sampled"] == 5 * 32
    assert "accuracy/in_dist/base" in result
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


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


def test_a_cell_that_cannot_be_built_is_recorded_too(server, online, tmp_path):
    cell = tmp_path / "small" / "broken"
    with pytest.raises(Exception, match="nothing to train on"):
        run.run(composed(*FEW, "data.train=null"), cell, in_sweep=True)
    (arrived,) = server.runs.values()
    assert (arrived.state, arrived.summary["status"], arrived.history) == ("failed", "failed", [])
    assert_same(cells.load([cell.parent]), cells.load([f"wandb:{PLACE}/small"]))


def test_a_server_that_does_not_answer_leaves_the_run_offline(monkeypatch, tmp_path, caplog, capsys):
    """A closed port. The second start has the id that the first one held, and nothing counts as sent."""
    enter(monkeypatch, {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"})
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setattr(wandb_logger, "TELL_AFTER_S", 0.5)
    attempt(tmp_path, [0, 1])
    assert caplog.text.count("W&B cannot be used (") == 1
    assert "the run is recorded offline" in caplog.text
    assert "waiting for an answer of W&B (http://127.0.0.1:9)" in capsys.readouterr().out
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert not list(tmp_path.glob("wandb/run-*"))
    assert wandb_logger.identity(tmp_path)[1] == -1


def test_a_home_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(wandb_logger, "usual_places", lambda: {"WANDB_DATA_DIR": Path("/dev/null/home")})
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", "/dev/null/home")
    tracker = wandb_logger.wandb_logger(tmp_path, "x", None, {}, "dash_exp")
    tracker.log_text("completions", columns=["a"], data=[["b"]], step=0)  # a table, which W&B stages there
    wandb_logger.finish(tracker, tmp_path, {"status": "done"})
    assert list((tmp_path / "wandb_data").rglob("staging"))
