"""The training problems and the test sets."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import flags, number, texts

SECTIONS = "data data.tests"


def values(cfg: DictConfig) -> None:
    texts(cfg, "data.name data.path")
    number(cfg, "data.max_prompt_tokens", whole=True, least=1, optional=True)
    flags(cfg, "data.train.annotations")
    if cfg.data.get("separator") is not None:
        texts(cfg, "data.separator", lines=True)
    if cfg.data.tests.get("in_dist") is None:
        raise UserError("data.tests.in_dist", "is null", "Give a test set: accuracy and the best checkpoint need it")
    sets = {"data.train": cfg.data.get("train")} | {f"data.tests.{name}": test for name, test in cfg.data.tests.items()}
    for key, value in sets.items():
        if value is not None and not (isinstance(value, DictConfig) and "_target_" in value):
            choose = "choose another data set: data=gsm8k" if key == "data.train" else f"choose one: +test@{key}=gsm8k"
            raise UserError(f"{key}={value}", "is not a data set", f"Write null, or {choose}")
    if "reward" in (cfg.data.get("train") or {}):
        raise UserError("data.train.reward", "is not read: training has the reward of the run", "Write reward=NAME instead")


def relations(cfg: DictConfig) -> None:
    tests = [(str(name), test) for name, test in cfg.data.tests.items() if test is not None]
    for i, (name, test) in enumerate(tests):
        if "/" in name:
            raise UserError(
                f"data.tests.{name}", "has a / in its name, which separates the parts of a metric's name", "Choose another name"
            )
        same = [other for other, earlier in tests[:i] if earlier == test]
        if same:
            raise UserError(f"data.tests.{name}", f"is the same test set as data.tests.{same[0]}", "Remove one of them")
