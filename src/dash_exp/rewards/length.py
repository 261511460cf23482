"""The length of a completion, for a sum with a negative weight: a penalty."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores


class LengthReward:
    """The characters of the completion divided by `limit`, at most 1. The problem is not used.

    Raises UserError for a limit that is not a whole number of at least 1.
    """

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise UserError(f"reward.limit={limit}", "is not a whole number of at least 1", "Write a number of characters")
        self.limit = limit

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        return Scores([min(1.0, len(text) / self.limit) for _, text in zip(problems, texts, strict=True)])
