"""Partial credit for written arithmetic: the share of the equations in a completion that are true."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores

NUMBER = r"-?[0-9]{1,15}"
# Not the end of a longer sum, as 2+3=6 is of 1+2+3=6.
EQUATION = regex.compile(rf"(?<![0-9.,]|[-+*/]\s?)({NUMBER})\s*([-+*])\s*({NUMBER})\s*=\s*({NUMBER})(?![.,]?[0-9])")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


class StepsReward:
    """The share of the equations a+b=c, a-b=c and a*b=c in the completion that are true; 0 where there is none.

    `modulus`: they are true modulo this number, as the steps of `data=arithmetic` are modulo 100; None = as they are. It does
    not look at the problem, so a completion can earn it with equations of its own choice: this is what the sweep `rewards`
    shows. Numbers are whole and have at most 15 digits; equations with others (2.5 or 1,000) are not read. Raises UserError for
    a modulus that is no whole number above 1.
    """

    def __init__(self, modulus: int | None = None) -> None:
        if modulus is not None and (isinstance(modulus, bool) or not isinstance(modulus, int) or modulus < 2):
            raise UserError(f"reward.modulus={modulus}", "is no whole number above 1", "Write 100, or null")
        self.modulus = modulus

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        return Scores([self._share_of_true(text) for _, text in zip(problems, texts, strict=True)])

    def _share_of_true(self, text: str) -> float:
        found = [self._is_true(APPLY[sign](int(a), int(b)), int(c)) for a, sign, b, c in EQUATION.findall(text)]
        return sum(found) / len(found) if found else 0.0

    def _is_true(self, result: int, written: int) -> bool:
        return (result if self.modulus is None else result % self.modulus) == written
