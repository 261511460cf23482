"""Answers compared character by character."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.patterns import can_give, group_of, last_matches, one_group


class ExactReward:
    """1 if the last match of `pattern` in the completion is the answer of the problem, character by character; else 0.

    `pattern`: a regular expression with exactly one group, which is what is compared. None compares the whole completion.
    White space around the answer does not count. `timeout_s`: seconds per completion, because a pattern can take exponential
    time on some texts; a longer search counts as a time-out. Raises UserError for a pattern that cannot be used.
    """

    grades = "answers"

    def __init__(self, pattern: str | None = None, timeout_s: float = 1.0) -> None:
        self.pattern = one_group(pattern)
        self.timeout_s = timeout_s
        self.group = group_of(self.pattern)

    def hopeless(self, problems: Sequence[Problem]) -> list[str | None]:
        """For each problem whether the pattern cannot give its answer: `A:(\\S+)` cannot give `1 1/2`."""
        said = "whose answer the pattern cannot give"
        return [None if can_give(self.group, p.answer, self.timeout_s) else said for p in problems]

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        answers, timeouts = last_matches(self.pattern, texts, self.timeout_s)
        return Scores([float(a == p.answer.strip()) for p, a in zip(problems, answers, strict=True)], timeouts)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """The answer in each completion; None where there is none or the search took too long."""
        return last_matches(self.pattern, texts, self.timeout_s)[0]
