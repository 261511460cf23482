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
from dash_exp.settings.data import BROUGHT, setting


def check_trains(cfg: DictConfig) -> None:
    """Raise UserError where there is nothing to train on."""
    if cfg.data.train is None:
        raise UserError(
            "data.train",
            f"is null: data={cfg.data.name} has nothing to train on",
            "Choose another data set, or evaluate: python -m dash_exp.evaluate",
        )


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
    """The problems of the data set at `key`. What a test set brings is no argument of it."""
    cfg = copy.deepcopy(cfg)  # whole, for its references
    part = OmegaConf.select(cfg, key)
    with open_dict(cfg):
        for name in [name for name in part if BROUGHT.fullmatch(f"{key}.{name}")]:
            part.pop(name)
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
