"""Answers compared character by character."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.patterns import last_matches, one_group


class ExactReward:
    """1 where the last match of `pattern` (its one group) is the answer, character by character.

    `pattern: null` compares the whole completion, stripped. A pattern can take exponential time on some text: one that needs
    more than `timeout_s` seconds for a completion counts as a time-out.
    """

    grades = "answers"

    def __init__(self, pattern: str | None = None, timeout_s: float = 1.0) -> None:
        self.pattern = one_group(pattern)
        self.timeout_s = timeout_s

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        answers, timeouts = last_matches(self.pattern, texts, self.timeout_s)
        return Scores([float(a == p.answer.strip()) for p, a in zip(problems, answers, strict=True)], timeouts)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """None too where a match took too long."""
        return last_matches(self.pattern, texts, self.timeout_s)[0]
