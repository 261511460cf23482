"""The command line of an evaluation, taken apart and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dash_exp.commands.command_line import positive, taken_apart, whole
from dash_exp.core.errors import UserError

OWN = ("k", "n", "temperature", "top_p", "checkpoint", "out")
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
    """Read and check the command line. The first argument is the target."""
    target, own, rest = taken_apart(arguments, OWN)
    overrides = [f"eval.{override}" if override.startswith("limit=") else override for override in rest]
    several = "Write k=8 or several as k=[1,8]"
    k = tuple(sorted({whole("k", v, 1, several) for v in own["k"].strip("[]() ").split(",")})) if "k" in own else ()
    n = whole("n", own["n"], 0) if "n" in own else max(k, default=0)
    if k and k[-1] > n:
        raise UserError(f"k={k[-1]}", f"is more than n={n} completions of each problem", f"Raise n to {k[-1]}, or lower k")
    checkpoint = own.get("checkpoint")
    if checkpoint is not None and checkpoint not in CHECKPOINTS:
        raise UserError(f"checkpoint={checkpoint}", "is not known", f"Use one of {', '.join(CHECKPOINTS)}")
    greedy = "Greedy accuracy is measured in any case"
    return Command(
        target=target,
        overrides=overrides,
        k=k,
        n=n,
        temperature=positive("temperature", own.get("temperature", "0.7"), greedy),
        top_p=positive("top_p", own.get("top_p", "0.95"), greedy, 1.0),
        checkpoint=checkpoint,
        out=own.get("out"),
    )
