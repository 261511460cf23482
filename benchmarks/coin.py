"""A random reward, for timing policies with random weights, which never solve a problem."""

import hashlib
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores


class Coin:
    """Reward 1 at random. Each problem has its own probability, uniformly distributed from 0 to 1."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        pairs = zip(problems, texts, strict=True)
        return Scores([float(_number(problem.id, text) < _number(problem.id)) for problem, text in pairs])


def _number(*texts: str) -> float:
    """A number from 0 to 1 that depends only on the texts."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:7]) / 2**56
