"""Command lines of the form `TARGET name=value ...`, whose names are some of the command and else settings of train.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dash_exp.core.errors import UserError


def taken_apart(arguments: Sequence[str], own: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """The target, the values of the command's `own` names, and the overrides of the configuration.

    The first argument is the target, even with = in it, as in folders of sweeps. Raises UserError for another form.
    """
    target, rest = arguments[0], arguments[1:]
    if target.startswith("-") or ("=" in target and not Path(target).expanduser().is_dir()):
        raise UserError(target, "is neither a run folder nor a model", "Name one first; see --help")
    given: dict[str, str] = {}
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(argument, "is not of the form name=value", f"{target} is the model or run; see --help")
        if name in own:
            given[name] = value.strip()
        else:
            overrides.append(argument)
    return target, given, overrides


def whole(name: str, text: str, least: int, right: str = "") -> int:
    """A whole number of at least `least`; else UserError, with what is `right`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UserError(
            f"{name}={text}", f"is not a whole number of at least {least}", right or f"Write {name}={max(least, 8)}"
        )
    return value


def positive(name: str, text: str, right: str, most: float = math.inf) -> float:
    """A number above 0 and at most `most`; else UserError, with what is `right`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most and math.isfinite(value)):
        wanted = "above 0" + (f" and at most {most:g}" if math.isfinite(most) else "")
        raise UserError(f"{name}={text}", f"is not a number {wanted}", right)
    return value
