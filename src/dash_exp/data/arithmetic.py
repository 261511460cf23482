"""Chains of one-digit numbers: the embedded default."""

from __future__ import annotations

import zlib
from bisect import bisect
from collections.abc import Mapping, Sequence

import numpy as np

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem

MODULUS = 100


OPERATORS = {"+": "plus", "-": "minus", "*": "times"}


def generate(
    split: str,
    form: str | Mapping[str, float],
    size: int,
    operands: tuple[int, int] = (3, 6),
    direct: Sequence[float] = (),
    careless: float = 0.0,
    error_rate: float = 0.25,
    skip: float = 0.0,
) -> list[Problem]:
    """Chains of one-digit numbers, worked from left to right modulo 100: what MATH and GSM8K are, in the small.

    `form`: "symbols" (`3+4*2=`, the training distribution), "words" (`3 plus 4 times 2 is`, out of distribution), or shares of
    both. `operands`: fewest and most numbers in a chain. Solutions are spelled out (`3+4=7 7*2=14 A:14`); `direct` gives for
    each length of chain, shortest first, the share that is bare (`A:14`). A share `careless` of those spelled out has wrong
    results, each step with probability `error_rate`. A base model learns from all of it, as people answer short problems from
    the head and make mistakes. A share `skip` of the steps is not written down but done in the head together with the next
    (`3+4*2=14 A:14`), as solutions written by people leave out what seems plain; see `merge_steps`.

    The problems depend on the arguments alone, never on the seed of a run.
    """
    forms = {form: 1.0} if isinstance(form, str) else dict(form) if isinstance(form, Mapping) else {}
    if set(forms) - {"symbols", "words"} or not all(map(_is_share, forms.values())) or not any(forms.values()):
        raise UserError("data.form", f"is {form!r}", "Use symbols, words, or shares of both")
    if isinstance(operands, str) or not isinstance(operands, Sequence) or len(operands) != 2:
        raise UserError(f"data.operands={operands}", "is no pair", "Give the fewest and the most numbers, as in [3,6]")
    fewest, most = operands
    if not (_is_whole(fewest) and _is_whole(most) and 2 <= fewest <= most <= 100):
        raise UserError(
            f"data.operands={operands}", "are no lengths", "Give two whole numbers of at least 2, the smaller first"
        )
    if not _is_whole(size) or size < 1:
        raise UserError(f"data.size={size}", "is not a whole number of at least 1", "Give the number of problems")
    shares = {"careless": careless, "error_rate": error_rate, "skip": skip}
    for key, share in {**shares, **{f"direct[{i}]": share for i, share in enumerate(direct)}}.items():
        if not _is_share(share):
            raise UserError(f"data.{key}={share}", "is not a share", "Use a number from 0 to 1")
    bare = list(direct) or [0.0] * (most - fewest + 1)
    if len(bare) != most - fewest + 1:
        raise UserError("data.direct", f"has {len(bare)} shares", f"Give one for each length from {fewest} to {most}")
    chains = len(forms) * sum(10**n * len(OPERATORS) ** (n - 1) for n in range(fewest, most + 1))
    if size > chains // 2:
        raise UserError(f"data.size={size}", f"is too much: there are {chains} such problems", f"Use at most {chains // 2}")
    name = f"{split} {forms} {size} {fewest} {most} {bare} {careless} {error_rate}"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    skip_rng = np.random.default_rng(zlib.crc32(f"{name} skip".encode()))  # of its own: skipping changes no problem
    kinds, up_to = list(forms), _cumulative(list(forms.values()))
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        numbers = rng.integers(0, 10, size=rng.integers(fewest, most + 1)).tolist()
        signs = [list(OPERATORS)[i] for i in rng.integers(0, 3, size=len(numbers) - 1)]
        prompt = _write(numbers, signs, kinds[bisect(up_to, rng.random())])
        answer = _work_out(numbers, signs, 0.0, rng).rpartition("A:")[2]
        spelled_out, careful = rng.random() >= bare[len(numbers) - fewest], rng.random() >= careless
        solution = _work_out(numbers, signs, 0.0 if careful else error_rate, rng) if spelled_out else f"A:{answer}"
        solution = merge_steps(solution, (skip_rng.random(len(signs)) < skip).tolist())
        problems.setdefault(prompt, Problem(f"arithmetic/{split}/{prompt}", prompt, answer, solution))
    return list(problems.values())


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def merge_steps(solution: str, skipped: Sequence[bool]) -> str:
    """The trace with step i written as one with the next where `skipped[i]`; the last step stays. A bare answer has no steps.

    `("3+4=7 7*2=14 14-5=9 A:9", [False, True]) -> "3+4=7 7*2-5=9 A:9"`
    """
    *steps, answer = solution.split(" ")
    written: list[str] = []
    for i, step in enumerate(steps):
        if i > 0 and skipped[i - 1]:
            left, _, result = written.pop().rpartition("=")
            step = left + step.removeprefix(result)
        written.append(step)
    return " ".join([*written, answer])


def _cumulative(shares: list[float]) -> list[float]:
    """The sum of each share and those before it, of all of them: `bisect` then draws as `rng.choice` does, but faster."""
    sums = np.cumsum(np.array(shares, dtype=float) / sum(shares))
    return (sums / sums[-1]).tolist()


def _write(numbers: list[int], signs: list[str], form: str) -> str:
    if form == "symbols":
        return "".join(f"{n}{s}" for n, s in zip(numbers, [*signs, "="], strict=True))
    return " ".join(f"{n} {s}" for n, s in zip(numbers, [*(OPERATORS[s] for s in signs), "is"], strict=True))


def _work_out(numbers: list[int], signs: list[str], error_rate: float, rng: np.random.Generator) -> str:
    """The trace of one chain. An error in a step is carried on, as a person would."""
    steps, value = [], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        right = {"+": value + number, "-": value - number, "*": value * number}[sign] % MODULUS
        result = int(rng.integers(0, MODULUS)) if rng.random() < error_rate else right
        steps.append(f"{value}{sign}{number}={result}")
        value = result
    return f"{' '.join(steps)} A:{value}"
