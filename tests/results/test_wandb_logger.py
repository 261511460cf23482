import pytest
import wandb
from conftest import SMALL, composed

from dash_exp.commands import run
from dash_exp.core.metrics import read_metrics
from dash_exp.results import wandb_logger
from dash_exp.training.module import PolicyModule


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
