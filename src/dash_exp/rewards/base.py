"""What a reward is: a callable that gives one number per completion. Usually 1 is correct and 0 is wrong.

A grading that takes too long or fails has a reward of 0 as well, but it is not a wrong answer: it is counted separately, in
`Scores.timeouts` or `Scores.errors`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem

SAMPLE = 100  # problems of a data set that are tried before a run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """The rewards of B completions.

    `rewards`: B numbers. `timeouts`, `errors`: how many of the B gradings took too long, or failed for another reason.
    `components`: further numbers by name, B each; a sum of rewards gives its parts here, before their weights.

    A number that is NaN or infinite is replaced by 0 and its completion is counted in `errors`, whichever reward it comes from:
    one NaN among the advantages would spread to every weight of the policy.
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
            log.warning("grading failed on %d completions: their reward is NaN or infinite", len(broken))
            object.__setattr__(self, "errors", self.errors + len(broken))
            object.__setattr__(self, "rewards", _finite(self.rewards))
            object.__setattr__(self, "components", {name: _finite(values) for name, values in self.components.items()})


class Reward(Protocol):
    """A reward is any callable of this form. `lambda problems, texts: Scores([float(len(t) < 100) for t in texts])` is one.

    It may have these attributes:

    - `grades`: "programs" if every problem must have `tests`, "answers" if none may and each must have an answer;
    - `needs_answer`: False if it grades answers, and knows without the problem's own which are right;
    - `components`: the names in `Scores.components`;
    - `correct`: the name of the component in which 1 means a correct completion; without it 1 in `Scores.rewards` does;
    - `answers(texts)`: the answer in each completion, spelled the same where two are equal, None where there is none; with it
      evaluation reports a majority vote (maj@n);
    - `hopeless(problems)`: for each of some problems why no completion can be correct, in words that follow "in 3 problems";
      None where one can, or where it is not known. It is called before a run (`check_problems`);
    - `close()`: called once, at the end of a run.
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        """Grade B completions: `texts[i]` is one of `problems[i]`. It may be called from a thread other than the main one."""


def check_problems(reward: Reward, problems: Sequence[Problem], where: str = "data") -> None:
    """Raise UserError for a problem of another kind than this reward grades, and where no completion can be correct in most of
    a sample of the problems; some of that kind are one line in the log. `where`: the setting that the problems are from.

    The sample is evenly spread: to grade thousands of programs or read as many formulas takes minutes.
    """
    grades = getattr(reward, "grades", None)
    own = f", or give this test set a reward of its own: +reward@{where}.reward=" if where.startswith("data.tests.") else ""
    for problem in problems:
        if grades == "programs" and not problem.tests:
            right = "Use reward=code with data=mbpp or data=mbpp_plus" + (own and f"{own}math")
            raise UserError(f"{where}, problem {problem.id}", "has no tests for its program", right)
        if grades == "answers" and problem.tests:
            wrong = "asks for a program, but the reward reads an answer"
            raise UserError(f"{where}, problem {problem.id}", wrong, "Use reward=code" + (own and f"{own}code"))
        if grades == "answers" and getattr(reward, "needs_answer", True) and not problem.answer.strip():
            right = "Name the field with the answer (data.answer), or use a reward that needs none, such as reward=format"
            right = "Use reward=reasoning_gym" if {"task", "metadata"} <= problem.extra.keys() else right
            wrong = "has no answer, with which the reward compares"
            raise UserError(f"{where}, problem {problem.id}", wrong, right + (own and f"{own}format"))
    if not problems or not hasattr(reward, "hopeless"):
        return
    sample = problems[:: -(-len(problems) // SAMPLE)]
    lost: dict[str, list[Problem]] = {}
    for problem, reason in zip(sample, reward.hopeless(sample), strict=True):
        if reason:
            lost.setdefault(reason, []).append(problem)
    if not lost:
        return
    count = sum(map(len, lost.values()))
    reasons = "; ".join(f"{len(found)} {reason}, such as {_shown(found[0])}" for reason, found in lost.items())
    tried = f"{len(sample)} problems" + (" that were tried" if len(sample) < len(problems) else "")
    says = f"in {count} of {tried} no completion can be correct: {reasons}"
    if 2 * count > len(sample):
        raise UserError(where, says, "Correct the data, or choose another reward or pattern")
    log.warning("%s: %s", where, says)


def _shown(problem: Problem) -> str:
    return problem.id + (f" with the answer {shortened(problem.answer)!r}" if problem.answer else "")


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def correct(scores: Scores, reward: Reward) -> list[bool]:
    """Which of the B completions are correct: those with exactly 1 in the component named by `reward.correct`, if it is given,
    else with a reward of exactly 1.
    """
    component = getattr(reward, "correct", None)
    return [value == 1 for value in (scores.components[component] if component else scores.rewards)]


def close_rewards(rewards: Iterable[Reward]) -> None:
    """Close each of these that can be closed; one that is there several times once."""
    for reward in {id(reward): reward for reward in rewards}.values():
        if hasattr(reward, "close"):
            reward.close()


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]
