"""A reward for policies with random weights, which are never right: for timing alone."""

import hashlib
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores


class Coin:
    """1 by chance. Problems are as likely hard as easy: each has a chance of its own, evenly spread from 0 to 1."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        pairs = zip(problems, texts, strict=True)
        return Scores([float(_number(problem.id, text) < _number(problem.id)) for problem, text in pairs])


def _number(*texts: str) -> float:
    """From 0 to 1, the same for the same texts."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:7]) / 2**56
