"""The form of a completion."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.patterns import compiled


class FormatReward:
    """1 where the whole completion, white space around it aside, matches `pattern`; `.` matches line breaks too.

    A pattern can take exponential time on some text: a match that needs more than `timeout_s` seconds counts as a time-out.
    """

    def __init__(self, pattern: str, timeout_s: float = 1.0) -> None:
        self.pattern = compiled(pattern, regex.DOTALL)
        self.timeout_s = timeout_s

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        rewards, timeouts = [], 0
        for _, text in zip(problems, texts, strict=True):
            reward = 0.0
            try:
                reward = float(self.pattern.fullmatch(text.strip(), timeout=self.timeout_s) is not None)
            except TimeoutError:
                timeouts += 1
            rewards.append(reward)
        return Scores(rewards, timeouts)
