"""What a setting must be by itself: a number in a range, a text, one of some words. Each check raises UserError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError


def sections(cfg: DictConfig, keys: str) -> None:
    """Each of these keys, divided by blanks, must have settings below it."""
    for key in keys.split():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, DictConfig):
            right = f"Write {key}._target_={value}" if isinstance(value, str) and "." in value else "Leave it as in conf/"
            raise UserError(f"{key}={shown(value)}", "is not a section of settings", right)


def part(cfg: DictConfig, key: str, needs: str) -> None:
    """`key` must be null or a section of settings that has `needs`."""
    value = OmegaConf.select(cfg, key)
    if value is not None and not (isinstance(value, DictConfig) and needs in value):
        raise UserError(f"{key}={value}", f"is not a section of settings with {needs}", "Write null, or leave it as in conf/")


def numbers(cfg: DictConfig, keys: str, **limits: Any) -> None:
    """`number` for each of these keys, divided by blanks."""
    for key in keys.split():
        number(cfg, key, **limits)


def number(
    cfg: DictConfig,
    key: str,
    *,
    whole: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    why: str = "",
) -> None:
    """`key`, where the configuration has it, must be a finite number inside these limits; with `optional` null as well.

    `why` says what is wrong outside the limits, where that is not obvious.
    """
    value = OmegaConf.select(cfg, key)
    if value is None and (optional or not _is_there(cfg, key)):
        return
    limits = {"of at least": least, "above": above, "at most": most, "below": below}
    limits_given = [f"{words} {limit}" for words, limit in limits.items() if limit is not None]
    wanted = " ".join(["a whole number" if whole else "a number", " and ".join(limits_given)]).strip()
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    good = good and (isinstance(value, int) or math.isfinite(value))
    good = good and (least is None or value >= least) and (above is None or value > above)
    good = good and (most is None or value <= most) and (below is None or value < below)
    if not good:
        outside = why and isinstance(value, int | float) and not isinstance(value, bool)
        wrong = f"is not {wanted}{f': {why}' if outside else ''}"
        raise UserError(f"{key}={shown(value)}", wrong, f"Write {wanted}{' or null' if optional else ''}")


def flags(cfg: DictConfig, keys: str) -> None:
    """Each of these keys, where the configuration has it, must be true or false."""
    for key in keys.split():
        value = OmegaConf.select(cfg, key, default=False)
        if not isinstance(value, bool):
            raise UserError(f"{key}={shown(value)}", "is neither true nor false", "Write true or false")


def texts(cfg: DictConfig, keys: str, *, lines: bool = False) -> None:
    """Each of these keys, where the configuration has it, must be one line of text; with `lines` any text."""
    for key in keys.split():
        value = OmegaConf.select(cfg, key, default="absent")
        if not isinstance(value, str) or not (lines or (value.strip() and value.isprintable())):
            said = repr(value) if isinstance(value, str) else shown(value)
            raise UserError(
                f"{key}={said}", "is not a text", "Write one line of text; what looks like a number takes quotes, '\"3\"'"
            )


def known(cfg: DictConfig, key: str, allowed: Sequence[str | bool]) -> None:
    """`key` must have one of these values."""
    value = OmegaConf.select(cfg, key)
    if not any(value == each and type(value) is type(each) for each in allowed):
        raise UserError(f"{key}={shown(value)}", "is not known", f"Use one of {', '.join(map(shown, allowed))}")


def shown(value: Any) -> str:
    """As it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_there(cfg: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(section, DictConfig) and last in section
