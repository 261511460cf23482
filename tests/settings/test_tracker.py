"""Settings of the tracker, and the environment's."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.settings import tracker

PROJECT = [("a/b", "is refused by W&B"), ("a#b", "none of them one of / \\ # ? % :"), ("x" * 129, "at most 128 characters")]
ENVIRONMENT = [
    ("WANDB_MODE", "nonsense", "WANDB_MODE=nonsense: is not known to W&B"),
    ("WANDB_MODE", "Offline", "WANDB_MODE=Offline: is not known"),
    ("WANDB_BASE_URL", "localhost:8080", "it does not start with http:// or https://"),
    ("WANDB_BASE_URL", "http://localhost:99999", "its port is not a number from 1 to 65535"),
]


def of_environment(monkeypatch, name, value, *overrides):
    with monkeypatch.context() as environment:
        environment.setenv(name, value)
        return refusal_of(composed(*overrides))


def test_every_refusal_has_a_case(monkeypatch):
    errors = [refusal(f"logger.wandb.project='{name}'") for name, _ in PROJECT]
    errors += [of_environment(monkeypatch, name, value) for name, value, _ in ENVIRONMENT]
    for error, (*_, message) in zip(errors, [*PROJECT, *ENVIRONMENT], strict=True):
        assert_refused(error, message)
    assert_each_is_met(tracker, errors)


@pytest.mark.parametrize("mode", ["", "online", "offline", "disabled", "dryrun"])
def test_what_wandb_takes_passes(monkeypatch, mode):
    assert of_environment(monkeypatch, "WANDB_MODE", mode, f"logger.wandb.project='{'x' * 128}'") is None


def test_without_wandb_its_variables_do_not_matter(monkeypatch):
    assert of_environment(monkeypatch, "WANDB_MODE", "nonsense", "logger=csv") is None
