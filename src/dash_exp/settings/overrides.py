"""The command line as the user types it: `kl=0,0.04` next to `algo=grpo,dash`."""

from __future__ import annotations

from collections.abc import Iterable


def number_of_kl(arguments: Iterable[str]) -> list[str]:
    """`kl=0.01` -> `kl.coef=0.01`, `kl=0,0.04` -> `kl.coef=0,0.04`, and `kl=0.04,linear` -> `kl='0.04',linear`.

    Hydra takes the value of a config group for a file name and refuses numbers. Here they are coefficients, whether a file
    has that name or not; next to names of files they must be names of files themselves. Everything else stays as it is.
    """
    return [_coefficient(argument) for argument in arguments]


def _coefficient(argument: str) -> str:
    key, _, value = argument.partition("=")
    values = [v.strip(" '\"") for v in value.split(",")]
    if key != "kl" or not any(map(_is_number, values)):
        return argument
    if all(map(_is_number, values)):
        return f"kl.coef={','.join(values)}"
    return f"kl={','.join(repr(v) if _is_number(v) else v for v in values)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
