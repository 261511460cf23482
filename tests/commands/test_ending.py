"""The end of a run: killed at any place of it, the same command does what is left, and trains nothing anew."""

import os
import signal
import sys
from pathlib import Path

import forked
import pytest
from conftest import LETTERS, composed
from omegaconf import OmegaConf

from dash_exp.commands import ending, hydra_setup, run
from dash_exp.commands.sweep import finished
from dash_exp.core.errors import UserError
from dash_exp.results import run_folder, wandb_logger
from dash_exp.results.cells import cells_of
from dash_exp.results.trackers import Tracker

ALL = {"config.yaml", "metrics.csv", "problems.csv", "result.json", "curves.png", "checkpoints/last", "checkpoints/best"}
PLACES = ["plot_curves", "finish_trackers", "remove_snapshots", "write_result"]


def killed(settings: list[str], folder: Path, place: str) -> None:
    """In a process of its own: the run, killed where it comes to this function of `ending`."""
    os.environ["WANDB_MODE"] = "offline"
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    setattr(ending, place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    run.run(composed(*settings), folder)


def killed_at(place: str, folder: Path, *settings: str) -> list[str]:
    settings_ = [*LETTERS, *settings]
    process = forked.process(killed, settings_, folder, place)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (cell,) = cells_of(folder)
    assert cell.status == "unfinished"
    return settings_


def never(*_, **__):
    raise AssertionError("it trains anew")


@pytest.fixture
def again(monkeypatch):
    """The same command, which may not build a model."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(run, "build", never)
    return lambda settings, folder: run.run(composed(*settings), folder)


def assert_whole(folder: Path, before: dict) -> None:
    assert run_folder.read_result(folder) == before | {"status": "done"}
    assert {name for name in ALL if (folder / name).exists()} == ALL
    assert (folder / "curves.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert not (folder / run_folder.SNAPSHOTS).exists()


@pytest.mark.parametrize("kept", [["last"], ["best"], []])
def test_only_the_weights_that_are_asked_for_are_kept(kept, tmp_path):
    settings = [*LETTERS, f"checkpoints=[{','.join(kept)}]", "logger=csv"]
    assert run.run(composed(*settings), tmp_path)["status"] == "done"
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*")) == kept
    assert finished.finished(tmp_path, composed(*settings[:-2], "logger=csv"))  # other weights to keep are no other run


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_in_its_end_is_ended_by_the_same_command(place, tmp_path, again):
    folder = tmp_path / "outputs" / "small" / "then"
    settings = killed_at(place, folder, "resume_every=null" if place == "plot_curves" else "resume_every=1")
    before = run_folder.read_result(folder)
    root = composed(*settings)
    assert hydra_setup.run_folder(str(folder.parent), "now", _root_=root) == str(folder)  # which the same command finds
    assert not finished.finished(folder, root)
    with pytest.raises(UserError, match="holds a stopped run with other settings"):
        finished.finished(folder, composed(*settings, "seed=3"))
    assert again(settings, folder)["status"] == "done"
    assert_whole(folder, before)
    assert finished.finished(folder, root)
    with pytest.raises(AssertionError, match="anew"):
        again([*settings, "resume=false"], folder)


def test_wandb_gets_the_run_that_was_killed_before_it_had_all(tmp_path, again, monkeypatch):
    settings = killed_at("finish_trackers", tmp_path, "logger=wandb")
    before, rows, finished_with = run_folder.read_result(tmp_path), [], []
    log, finish = wandb_logger.StepLogger.log_metrics, wandb_logger.finish
    monkeypatch.setattr(
        wandb_logger.StepLogger, "log_metrics", lambda self, row, step: (rows.append(step), log(self, row, step))
    )
    monkeypatch.setattr(wandb_logger, "finish", lambda *a: (finished_with.append(a[2]["status"]), finish(*a)))
    id_before = run_folder.wandb_id(tmp_path)
    again(settings, tmp_path)
    assert_whole(tmp_path, before)
    assert (rows, finished_with) == ([0, 1, 2], ["done"])
    assert run_folder.wandb_id(tmp_path) == id_before
    (record,) = tmp_path.glob("wandb/offline-run-*/files/record")
    assert (record / "result.json").read_text() == (tmp_path / "result.json").read_text()


def test_a_tracker_that_fails_in_the_end_does_not_fail_the_run(tmp_path, again, monkeypatch, caplog):
    settings = killed_at("finish_trackers", tmp_path, "logger=csv")

    class Gone:
        def log_metrics(self, *_, **__):
            pass

    monkeypatch.setattr(ending, "start_trackers", lambda *_: [Tracker("W&B", Gone())])
    assert again(settings, tmp_path)["status"] == "done"
    assert "W&B does not have all of this run ('Gone' object has no attribute 'finish')" in caplog.text


def test_a_full_disk_in_the_end_leaves_the_end_to_the_same_command(tmp_path, again, monkeypatch):
    settings = killed_at("remove_snapshots", tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device", "curves.png")

    with monkeypatch.context() as disk:
        disk.setattr(ending, "plot_curves", full)
        with pytest.raises(
            UserError, match=r"curves.png: the disk is full. Free some space; the same command then ends the run"
        ):
            again(settings, tmp_path)
    assert run_folder.read_result(tmp_path)["status"] == run_folder.ENDING
    assert again(settings, tmp_path)["status"] == "done"
    assert OmegaConf.load(tmp_path / "config.yaml").name == "small"
