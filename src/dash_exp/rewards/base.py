"""Rewards: problems and completions in, one number each out. Correct is 1, wrong is 0.

Grading that takes too long or breaks is never passed off as a wrong answer: it is counted apart (`Scores.timeouts`,
`Scores.errors`), although its reward can only be 0.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One reward per completion, and how many gradings did not come to an end.

    `components` holds, by name, the parts of a summed reward before their weights: one number per completion each.
    A completion with a number that is not finite, whoever made it, is an error and that number 0: one NaN among the advantages
    would end in every weight.
    """

    rewards: list[float]
    timeouts: int = 0
    errors: int = 0
    components: Mapping[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        broken = {
            i for values in (self.rewards, *self.components.values()) for i, v in enumerate(values) if not math.isfinite(v)
        }
        if broken:
            log.warning("grading failed on %d completions: their reward is not finite", len(broken))
            object.__setattr__(self, "errors", self.errors + len(broken))
            object.__setattr__(self, "rewards", _finite(self.rewards))
            object.__setattr__(self, "components", {name: _finite(values) for name, values in self.components.items()})


class Reward(Protocol):
    """A reward is a callable. Five attributes are optional:

    `grades`, "programs" where problems must have `tests`, "answers" where they must not;
    `components`, the names of those in its `Scores`;
    `correct`, the one of them in which 1 means a correct completion, where that is not the reward itself;
    `answers(texts)`, the answer that stands in each completion, equal ones spelled alike, None without one;
    `close()`, at the end of its use.
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        """Grade `texts[i]` as a completion of `problems[i]`."""


def check_problems(reward: Reward, problems: Sequence[Problem]) -> None:
    """Raise UserError for a problem that this reward cannot grade."""
    grades = getattr(reward, "grades", None)
    for problem in problems:
        if grades == "programs" and not problem.tests:
            raise UserError(
                f"problem {problem.id}", "has no tests for its program", "Use reward=code with data=mbpp or mbpp_plus"
            )
        if grades == "answers" and problem.tests:
            raise UserError(f"problem {problem.id}", "asks for a program, and the reward reads an answer", "Use reward=code")


def correct(scores: Scores, reward: Reward) -> list[bool]:
    """Which completions are correct: those with exactly 1 in the component that `reward.correct` names, or as reward."""
    component = getattr(reward, "correct", None)
    return [value == 1 for value in (scores.components[component] if component else scores.rewards)]


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]
