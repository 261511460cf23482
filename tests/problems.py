"""Problems for the tests of rewards, and grading of odd completions among ordinary ones."""

from __future__ import annotations

from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Reward, Scores

DOUBLE = Problem("d", "Double.", "", tests=("assert double(2) == 4", "assert double('a') == 'aa'"))


def problem(answer: str) -> Problem:
    return Problem("p", "?", answer)


SEVEN = problem("7")


def between(texts: Sequence[str], right: str, wrong: str) -> list[str]:
    """Each text, with a right and a wrong ordinary completion after it."""
    return [t for text in texts for t in (text, right, wrong)]


def graded(reward: Reward, problem: Problem, texts: Sequence[str], right: str, wrong: str) -> Scores:
    """The scores of `texts` alone, checked for the ordinary completions after each."""
    asked = between(texts, right, wrong)
    scores = reward([problem] * len(asked), asked)
    assert scores.rewards[1::3] == [1] * len(texts)
    assert scores.rewards[2::3] == [0] * len(texts)
    return Scores(scores.rewards[0::3], scores.timeouts, scores.errors)
