"""The steps that generated programs consist of (`programs`): what each one says in English and in Python, and what it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KINDS = ("numbers", "pairs", "lists", "strings", "conditions")
# What a step takes: the names of the arguments, and how a problem speaks of them. A "truth" is never taken.
ARGUMENTS: dict[str, tuple[str, ...]] = {"number": ("x",), "pair": ("x", "y"), "list": ("xs",), "text": ("s",)}
GIVEN = {
    "number": "a whole number x",
    "pair": "two whole numbers x and y",
    "list": "a list xs of whole numbers",
    "text": "a text s",
}


@dataclass(frozen=True)
class Step:
    """One operation on a value {x}, or on two, {x} and {y}, with a constant {n} out of `values` where it has one.

    `takes`, `gives`: "number", "pair", "list", "text" or "truth". `code`: an expression. `says`: the same in English, in some
    wordings. `mistake`: an expression that is nearly right, which the tests are to find.
    """

    kind: str
    takes: str
    gives: str
    code: str
    says: tuple[str, ...]
    values: tuple[int | str | None, ...] = (None,)
    mistake: str = ""


@dataclass(frozen=True)
class Applied:
    """A step with its constant."""

    step: Step
    n: int | str | None

    def code(self, x: str, y: str = "y") -> str:
        return self.step.code.format(x=x, y=y, n=repr(self.n))

    def says(self, wording: int, x: str, y: str = "y") -> str:
        return self.step.says[wording % len(self.step.says)].format(x=x, y=y, n=self.n)

    @property
    def function(self) -> Callable[..., Any]:
        return _function(self.code("x"))


Chain = tuple[Applied, ...]  # each takes what the one before gives

FAILS = object()  # what a program gives where it raises an exception: equal to no value


def outcome(chain: Chain, arguments: tuple[Any, ...]) -> Any:
    """What the program of a chain returns; FAILS where it raises an exception. Without steps: its first argument."""
    try:
        value = chain[0].function(*arguments) if chain else arguments[0]
        for applied in chain[1:]:
            value = applied.function(value)
    except (IndexError, ValueError):  # of an empty list or text
        return FAILS
    return value


@functools.cache
def _function(code: str) -> Callable[..., Any]:
    return eval(f"lambda x, y=None: {code}")  # the expressions of this file


UP_TO_20, SMALL, LETTERS = tuple(range(1, 21)), tuple(range(2, 10)), tuple("aeiorst")

STEPS = (
    Step("numbers", "number", "number", "{x} + {n}", ("{x} plus {n}", "the sum of {x} and {n}"), UP_TO_20),
    Step("numbers", "number", "number", "{x} - {n}", ("{x} minus {n}", "{n} subtracted from {x}"), UP_TO_20),
    Step("numbers", "number", "number", "{n} - {x}", ("{n} minus {x}", "{x} subtracted from {n}"), UP_TO_20),
    Step("numbers", "number", "number", "{x} * {n}", ("{x} times {n}", "the product of {x} and {n}"), SMALL),
    Step("numbers", "number", "number", "{x} ** 2", ("the square of {x}", "{x} squared")),
    Step("numbers", "number", "number", "{x} % {n}", ("{x} modulo {n}", "the remainder when {x} is divided by {n}"), SMALL),
    Step("numbers", "number", "number", "{x} // {n}", ("{x} divided by {n} and rounded down",), SMALL, "{x} / {n}"),
    Step("pairs", "pair", "number", "{x} + {y}", ("{x} plus {y}", "the sum of {x} and {y}")),
    Step("pairs", "pair", "number", "{x} - {y}", ("{x} minus {y}", "{y} subtracted from {x}")),
    Step("pairs", "pair", "number", "{x} * {y}", ("{x} times {y}", "the product of {x} and {y}")),
    Step("pairs", "pair", "number", "max({x}, {y})", ("the larger of {x} and {y}", "the maximum of {x} and {y}")),
    Step("pairs", "pair", "number", "min({x}, {y})", ("the smaller of {x} and {y}", "the minimum of {x} and {y}")),
    Step("pairs", "pair", "number", "{n} * {y} + {x}", ("{n} times {y}, plus {x}",), SMALL),
    Step("pairs", "pair", "number", "{n} * {x} - {y}", ("{n} times {x}, minus {y}",), SMALL),
    Step("lists", "list", "number", "sum({x})", ("the sum of the numbers in {x}", "the total of {x}")),
    Step("lists", "list", "number", "max({x})", ("the largest number in {x}", "the maximum of {x}")),
    Step("lists", "list", "number", "min({x})", ("the smallest number in {x}", "the minimum of {x}")),
    Step("lists", "list", "number", "len({x})", ("the length of {x}", "how many numbers are in {x}")),
    Step("lists", "list", "number", "{x}[0]", ("the first number in {x}",)),
    Step("lists", "list", "number", "{x}[-1]", ("the last number in {x}",)),
    Step("lists", "list", "number", "{x}.count({n})", ("how many times {n} occurs in {x}",), UP_TO_20, "int({n} in {x})"),
    Step("lists", "list", "list", "{x}[::-1]", ("{x} in reverse order", "the reverse of {x}")),
    Step("lists", "list", "list", "sorted({x})", ("{x} sorted from small to large", "{x} sorted"), mistake="sorted(set({x}))"),
    Step("lists", "list", "list", "{x}[1:]", ("{x} without its first number",)),
    Step("lists", "list", "list", "{x}[:{n}]", ("the first {n} numbers of {x}",), (2, 3, 4)),
    Step("lists", "list", "list", "[v * {n} for v in {x}]", ("the list with each number of {x} times {n}",), SMALL),
    Step("lists", "list", "list", "[v + {n} for v in {x}]", ("the list with each number of {x} plus {n}",), UP_TO_20),
    Step(
        "lists", "list", "list", "[v for v in {x} if v > {n}]", ("the list of the numbers in {x} greater than {n}",), UP_TO_20
    ),
    Step("strings", "text", "text", "{x}.upper()", ("{x} in upper case", "{x} in capital letters"), mistake="{x}.capitalize()"),
    Step("strings", "text", "text", "{x}.lower()", ("{x} in lower case", "{x} in small letters")),
    Step("strings", "text", "text", "{x}[::-1]", ("{x} reversed", "the reverse of {x}")),
    Step("strings", "text", "text", "{x} * {n}", ("{x} repeated {n} times",), (2, 3, 4, 5)),
    Step("strings", "text", "text", "{x}[0]", ("the first letter of {x}", "the first character of {x}")),
    Step("strings", "text", "text", "{x}[-1]", ("the last letter of {x}", "the last character of {x}")),
    Step("strings", "text", "text", "{x}[:{n}]", ("the first {n} letters of {x}",), (2, 3, 4)),
    Step("strings", "text", "text", "{x} + {n}", ("{x} followed by the letter {n}",), LETTERS),
    Step(
        "strings", "text", "text", "{x}.replace({n}, '')", ("{x} without the letter {n}",), LETTERS, "{x}.replace({n}, '', 1)"
    ),
    Step("strings", "text", "number", "len({x})", ("the length of {x}", "how many characters {x} has")),
    Step(
        "strings",
        "text",
        "number",
        "{x}.count({n})",
        ("how many times the letter {n} occurs in {x}",),
        LETTERS,
        "int({n} in {x})",
    ),
    Step("conditions", "number", "number", "abs({x})", ("the absolute value of {x}", "how far {x} is from zero")),
    Step("conditions", "number", "number", "max({x}, {n})", ("{x} if {x} is greater than {n}, else {n}",), UP_TO_20),
    Step("conditions", "number", "number", "min({x}, {n})", ("{x} if {x} is less than {n}, else {n}",), UP_TO_20),
    Step("conditions", "number", "truth", "{x} % 2 == 0", ("whether {x} is even", "True if {x} is even, else False")),
    Step("conditions", "number", "truth", "{x} % 2 == 1", ("whether {x} is odd", "True if {x} is odd, else False")),
    Step("conditions", "number", "truth", "{x} > {n}", ("whether {x} is greater than {n}",), UP_TO_20, "{x} >= {n}"),
    Step("conditions", "number", "truth", "{x} < {n}", ("whether {x} is less than {n}",), UP_TO_20, "{x} <= {n}"),
    Step("conditions", "number", "truth", "{x} % {n} == 0", ("whether {x} is divisible by {n}",), SMALL[1:]),
    Step("conditions", "pair", "truth", "{x} > {y}", ("whether {x} is greater than {y}",), mistake="{x} >= {y}"),
    Step("conditions", "list", "truth", "{n} in {x}", ("whether {n} is in {x}",), UP_TO_20),
    Step("conditions", "text", "truth", "{n} in {x}", ("whether {x} contains the letter {n}",), LETTERS),
)
