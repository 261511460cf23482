"""Rewards: their workers, time limits and models; that of the run, and those that test sets bring."""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import flags, number, numbers, shown, texts

SECTIONS = "reward"
OF_TEST = re.compile(r"data\.tests\.[^.]+\.reward")


def key_of(cfg: DictConfig, where: str) -> str:
    """The key of the reward that grades the problems of the setting `where`: `data.tests.NAME.reward`, or else `reward`."""
    own = f"{where}.reward"
    return own if OF_TEST.fullmatch(own) and OmegaConf.select(cfg, own) is not None else "reward"


def keys(cfg: DictConfig) -> list[str]:
    """The keys of all rewards of a run, that of training first."""
    return list(dict.fromkeys(["reward", *(key_of(cfg, f"data.tests.{name}") for name in cfg.data.tests)]))


def different(cfg: DictConfig) -> dict[str, DictConfig]:
    """The rewards of a run by their keys, without those whose settings are equal to those of one before."""
    found: dict[str, DictConfig] = {}
    for key in keys(cfg):
        reward = OmegaConf.select(cfg, key)
        if reward not in found.values():
            found[key] = reward
    return found


def with_parts(cfg: DictConfig, key: str) -> list[str]:
    """The keys of a reward and, where it is a sum, of its parts."""
    parts = OmegaConf.select(cfg, f"{key}.parts")
    return [key, *(f"{key}.parts.{name}" for name in (map(str, parts) if isinstance(parts, DictConfig) else ()))]


def values(cfg: DictConfig) -> None:
    for key in keys(cfg):
        if key != "reward":
            _brought(cfg, key)
        texts(cfg, f"{key}.path")
        flags(cfg, f"{key}.chat {key}.squash {key}.partial")
        numbers(cfg, f"{key}.processes {key}.max_tokens", whole=True, least=1)
        number(cfg, f"{key}.accept_above")
        for part in with_parts(cfg, key):
            number(cfg, f"{part}.timeout_s", above=0)
            number(cfg, f"{part}.workers", whole=True, least=1, optional=True)
            number(cfg, f"{part}.memory_mb", whole=True, least=64)


def _brought(cfg: DictConfig, key: str) -> None:
    """What a test set brings must be a reward."""
    value: object = OmegaConf.select(cfg, key)
    if not (isinstance(value, DictConfig) and "_target_" in value):
        name = value if isinstance(value, str) and value.isidentifier() else "math"
        raise UserError(
            f"{key}={shown(value)}",
            "is not a reward",
            f"Write reward@{key}={name}, with + in front if the test set brings none itself, or null for the run's reward",
        )
