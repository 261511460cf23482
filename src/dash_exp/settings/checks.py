"""What a setting has to be, by itself: a number in a range, one of some words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError


def number(
    cfg: DictConfig,
    key: str,
    *,
    whole: bool = False,
    least: float | None = None,
    above: float | None = None,
    optional: bool = False,
) -> None:
    """`key`, where the configuration has it, must be a finite number, at least `least` or more than `above`."""
    value = OmegaConf.select(cfg, key)
    parent, _, last = key.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    absent = not isinstance(section, DictConfig) or last not in section
    if value is None and (optional or absent):
        return
    wanted = "a whole number" if whole else "a number"
    if least is not None:
        wanted += f" of at least {least}"
    if above is not None:
        wanted += f" above {above}"
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    good = good and (isinstance(value, int) or math.isfinite(value))
    good = good and (least is None or value >= least) and (above is None or value > above)
    if not good:
        raise UserError(f"{key}={shown(value)}", f"is not {wanted}", f"Write {wanted}{' or null' if optional else ''}")


def known(cfg: DictConfig, key: str, allowed: Sequence[str]) -> None:
    """`key` must have one of these values."""
    value = OmegaConf.select(cfg, key)
    if value not in allowed:
        raise UserError(f"{key}={shown(value)}", "is not known", f"Use one of {', '.join(allowed)}")


def shown(value: Any) -> str:
    """As it is written on the command line."""
    return "null" if value is None else str(value)
