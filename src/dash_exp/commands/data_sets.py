"""The problems of a run: those to train on, and the test sets."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf, open_dict

from dash_exp.commands import rehearsal
from dash_exp.commands.parts import made, named
from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data import order
from dash_exp.settings.data import setting
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
    """The problems of the data set at `key`. The reward that a test set brings is no argument of it."""
    if OF_TEST.fullmatch(f"{key}.reward"):
        cfg = copy.deepcopy(cfg)  # whole, for its references
        with open_dict(cfg):
            OmegaConf.select(cfg, key).pop("reward", None)
    with naming_settings(cfg, key):
        return rehearsal.problems(made(cfg, key), named(cfg, key))


@contextmanager
def naming_settings(cfg: DictConfig, key: str) -> Iterator[None]:
    """Loaders and rewards write `data.NAME` in messages for an argument of a data set, and `data.tests.NAME` for a test set.
    Here an argument of the one at `key` gets the name of the setting that gives it, and a test set gets its own name.
    """
    try:
        yield
    except UserError as error:
        part = OmegaConf.select(cfg, key)
        arguments = {str(name): setting(cfg, key, name) for name in part}
        if part.get("other_path") is not None:
            arguments["path"] = arguments["other_path"]
        name = re.compile(rf"(?<![\w.])data\.({'|'.join(map(re.escape, arguments))})\b")
        said = [name.sub(lambda found: arguments[found[1]], text) for text in (error.where, error.wrong, error.right)]
        if key != "data.train":
            said = [text.replace("data.tests.NAME", key) for text in said]
        raise UserError(*said) from error.__cause__
