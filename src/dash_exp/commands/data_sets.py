"""The problems of a run: those to train on, and the test sets."""

from __future__ import annotations

import copy
import re

from omegaconf import DictConfig, OmegaConf, open_dict

from dash_exp.commands import rehearsal
from dash_exp.commands.parts import made, named
from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data import order
from dash_exp.settings.reward import OF_TEST


def problems(cfg: DictConfig) -> tuple[list[Problem], dict[str, list[Problem]], int]:
    """The first `data.limit` training problems, without those of the test sets; the test sets by name, of each the first
    `eval.limit`; and how many training problems were left out, because a test set has them.
    """
    tests = {str(name): data_set(cfg, f"data.tests.{name}") for name, test in cfg.data.tests.items() if test is not None}
    given = data_set(cfg, "data.train")
    train = order.without(given, [p for test in tests.values() for p in test])
    used = {name: test[: cfg.eval.limit] for name, test in tests.items()}
    return train[: cfg.data.get("limit")], used, len(given) - len(train)


def data_set(cfg: DictConfig, key: str) -> list[Problem]:
    """The problems of the data set at `key`. The reward that a test set brings is no argument of it.

    Loaders name the settings of `data` in messages; of a test set that has its own ones, these are named.
    """
    if OF_TEST.fullmatch(f"{key}.reward"):
        cfg = copy.deepcopy(cfg)  # whole, for its references
        with open_dict(cfg):
            OmegaConf.select(cfg, key).pop("reward", None)
    try:
        return rehearsal.problems(made(cfg, key), named(cfg, key))
    except UserError as error:
        part = OmegaConf.select(cfg, key)
        if key == "data.train" or "path" not in part or OmegaConf.is_interpolation(part, "path"):
            raise
        name = rf"(?<![\w.])data\.(?:test_)?({'|'.join(map(str, part))})\b"
        said = (re.sub(name, rf"{key}.\1", text) for text in (error.where, error.wrong, error.right))
        raise UserError(*said) from error.__cause__
