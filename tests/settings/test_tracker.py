"""Settings of the trackers, and the environment's."""

import importlib.machinery
import importlib.util

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.settings import tracker
from dash_exp.settings.validate import validate

PROJECT = [("a/b", "is refused by W&B"), ("a#b", "none of them one of / \\ # ? % :"), ("x" * 129, "at most 128 characters")]
ENVIRONMENT = [
    ("WANDB_MODE", "nonsense", "WANDB_MODE=nonsense: is not known to W&B"),
    ("WANDB_MODE", "Offline", "WANDB_MODE=Offline: is not known"),
    ("WANDB_BASE_URL", "localhost:8080", "it does not start with http:// or https://"),
    ("WANDB_BASE_URL", "http://localhost:99999", "its port is not a number from 1 to 65535"),
]
MISSING = [
    ("tensorboard", "logger=tensorboard: needs TensorBoard, which is not installed. Run pip install -e '.[tensorboard]'"),
    ("mlflow", "logger=mlflow: needs MLflow, which is not installed. Run pip install -e '.[mlflow]'"),
    ("trackio", "logger=trackio: needs Trackio, which is not installed. Run pip install -e '.[trackio]'"),
    ("[wandb,mlflow]", "logger=mlflow: needs MLflow"),
]


def of_environment(monkeypatch, name, value, *overrides):
    with monkeypatch.context() as environment:
        environment.setenv(name, value)
        return refusal_of(composed(*overrides))


def installed(monkeypatch, is_there: bool) -> None:
    """The packages of the trackers are there, or not."""
    real = importlib.util.find_spec
    found = {name: importlib.machinery.ModuleSpec(name, None) if is_there else None for name in tracker.PACKAGES}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: found[name] if name in found else real(name, *more))


def test_every_refusal_has_a_case(monkeypatch):
    errors = [refusal(f"logger.wandb.project='{name}'") for name, _ in PROJECT]
    errors += [of_environment(monkeypatch, name, value) for name, value, _ in ENVIRONMENT]
    with monkeypatch.context() as packages:
        installed(packages, False)
        errors += [refusal_of(composed(f"logger={names}")) for names, _ in MISSING]
    for error, (*_, message) in zip(errors, [*PROJECT, *ENVIRONMENT, *MISSING], strict=True):
        assert_refused(error, message)
    assert_each_is_met(tracker, errors)


@pytest.mark.parametrize("mode", ["", "online", "offline", "disabled", "dryrun"])
def test_what_wandb_takes_passes(monkeypatch, mode):
    assert of_environment(monkeypatch, "WANDB_MODE", mode, f"logger.wandb.project='{'x' * 128}'") is None


@pytest.mark.parametrize("names", ["csv", "tensorboard", "[csv,mlflow]"])
def test_without_wandb_its_variables_do_not_matter(monkeypatch, names):
    installed(monkeypatch, True)
    assert of_environment(monkeypatch, "WANDB_MODE", "nonsense", f"logger={names}") is None


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("csv", []),
        ("both", ["wandb"]),
        ("mlflow", ["mlflow"]),
        ("[csv,tensorboard]", ["tensorboard"]),
        ("[wandb,tensorboard,mlflow,trackio]", ["wandb", "tensorboard", "mlflow", "trackio"]),
    ],
)
def test_a_list_chooses_several(monkeypatch, names, chosen):
    """`logger=NAME` alone is that one: what the default chooses is gone."""
    installed(monkeypatch, True)
    cfg = composed(f"logger={names}")
    validate(cfg)
    assert [name for name, part in cfg.logger.items() if part is not None] == chosen


def test_a_run_of_another_machine_can_be_evaluated_without_its_trackers(monkeypatch):
    installed(monkeypatch, False)
    validate(composed("logger=[tensorboard,trackio]"), earlier=True)
