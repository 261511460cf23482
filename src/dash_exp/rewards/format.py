"""The format of a completion, such as one pair of tags."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.patterns import compiled


class FormatReward:
    """1 if the whole completion, without the white space around it, matches `pattern`; else 0. The problem is not used.

    `pattern`: a regular expression; `.` matches line breaks too. `timeout_s`: seconds per completion, because a pattern can
    take exponential time on some texts; a longer match counts as a time-out. Raises UserError for a pattern that is not one.
    """

    def __init__(self, pattern: str, timeout_s: float = 1.0) -> None:
        self.pattern = compiled(pattern, regex.DOTALL)
        if not pattern or self.pattern.fullmatch("", partial=True, timeout=timeout_s) is None:
            raise UserError(
                f"reward.pattern={pattern}",
                "matches no completion" if pattern else "matches only a completion without text",
                "Write the form that a completion should have",
            )
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
