"""The command line as the user types it: `kl=0,0.04` next to `algo=grpo,dash`."""

from __future__ import annotations

from collections.abc import Iterable


def number_of_kl(arguments: Iterable[str]) -> list[str]:
    """`kl=0.01` -> `kl.coef=0.01`, and `kl=0,0.04` -> `kl.coef=0,0.04`; everything else as it is.

    Hydra takes the value of a config group for a file name and refuses numbers. Here they are coefficients, whether a file
    has that name or not.
    """
    return [_coefficient(argument) for argument in arguments]


def _coefficient(argument: str) -> str:
    key, _, value = argument.partition("=")
    numbers = [v.strip(" '\"") for v in value.split(",")]
    try:
        [float(n) for n in numbers]
    except ValueError:
        return argument
    return f"kl.coef={','.join(numbers)}" if key == "kl" else argument
