"""The command line of an evaluation, taken apart and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dash_exp.core.errors import UserError

CHECKPOINTS = ("last", "best", "base")


@dataclass(frozen=True)
class Command:
    """The command line: what is evaluated, the settings of the evaluation itself, and overrides of the configuration."""

    target: str
    overrides: list[str]
    k: tuple[int, ...] = ()
    n: int = 0
    temperature: float = 0.7
    top_p: float = 0.95
    checkpoint: str | None = None
    out: str | None = None


def parse(arguments: Sequence[str]) -> Command:
    """Read and check the command line. The first argument is the target, even with = in it, as in folders of sweeps."""
    target, rest = arguments[0], arguments[1:]
    if target.startswith("-") or ("=" in target and not Path(target).expanduser().is_dir()):
        raise UserError(target, "is neither a run folder nor a model", "Name one first; see --help")
    own: dict[str, str] = {}
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(argument, "is not of the form name=value", f"Only {target} is evaluated; see --help")
        if name in ("k", "n", "temperature", "top_p", "checkpoint", "out"):
            own[name] = value.strip()
        else:
            overrides.append(f"eval.limit={value}" if name == "limit" else argument)
    k = tuple(sorted({_whole("k", v, 1) for v in own["k"].strip("[]() ").split(",")})) if "k" in own else ()
    n = _whole("n", own["n"], 0) if "n" in own else max(k, default=0)
    if k and k[-1] > n:
        raise UserError(f"k={k[-1]}", f"is more than n={n} completions of each problem", f"Raise n to {k[-1]}, or lower k")
    checkpoint = own.get("checkpoint")
    if checkpoint is not None and checkpoint not in CHECKPOINTS:
        raise UserError(f"checkpoint={checkpoint}", "is not known", f"Use one of {', '.join(CHECKPOINTS)}")
    return Command(
        target=target,
        overrides=overrides,
        k=k,
        n=n,
        temperature=_number("temperature", own.get("temperature", "0.7"), math.inf),
        top_p=_number("top_p", own.get("top_p", "0.95"), 1.0),
        checkpoint=checkpoint,
        out=own.get("out"),
    )


def _whole(name: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        hint = " or several as k=[1,8]" if name == "k" else ""
        raise UserError(f"{name}={text}", f"is not a whole number of at least {least}", f"Write {name}=8{hint}")
    return value


def _number(name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most and math.isfinite(value)):
        wanted = "above 0" + (f" and at most {most:g}" if math.isfinite(most) else "")
        raise UserError(f"{name}={text}", f"is not a number {wanted}", "Greedy accuracy is measured in any case")
    return value
