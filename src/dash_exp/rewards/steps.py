"""Partial credit for written arithmetic: the share of the equations in a completion that are true."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores

NUMBER = r"-?[0-9]{1,15}"
EQUATION = re.compile(rf"(?<![0-9])({NUMBER})\s*([-+*])\s*({NUMBER})\s*=\s*({NUMBER})(?![0-9])")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


class StepsReward:
    """The share of the equations a+b=c, a-b=c and a*b=c in the completion that are true; 0 where there is none.

    It does not look at the problem, so a completion can earn it with equations of its own choice: this is what the sweep
    `rewards` shows. Numbers have at most 15 digits; what has more is no equation.
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        return Scores([_share_of_true(text) for _, text in zip(problems, texts, strict=True)])


def _share_of_true(text: str) -> float:
    found = [APPLY[sign](int(a), int(b)) == int(c) for a, sign, b, c in EQUATION.findall(text)]
    return sum(found) / len(found) if found else 0.0
