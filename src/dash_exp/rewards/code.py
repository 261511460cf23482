"""Programs, graded by running the tests of their problem."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.continued import continued
from dash_exp.rewards.cores import workers_for
from dash_exp.rewards.programs import program_of
from dash_exp.rewards.sandbox import Outcome, Sandbox
from dash_exp.rewards.sandbox_order import NoTestsError, names_of, order_of
from dash_exp.rewards.tags import answer_part

log = logging.getLogger(__name__)


class CodeReward:
    """1 if the program in the completion passes the tests of its problem, run in a sandbox (`sandbox.Sandbox`); else 0.

    A program that is wrong, raises an exception or ends early gets 0. A program that takes more than `timeout_s` seconds counts
    as a time-out. A sandbox that fails, or tests that cannot be run, count as an error. `workers`: how many programs are graded
    at a time. `isolation`, `memory_mb`, `processes`: see `sandbox.Sandbox`. Raises UserError where this machine cannot isolate
    programs in this way.
    """

    grades = "programs"

    def __init__(
        self,
        isolation: str = "bwrap",
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        processes: int = 1,
        workers: int | None = None,
    ) -> None:
        self.workers = workers or workers_for()
        self.sandbox = Sandbox(isolation, timeout_s, memory_mb, processes)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        with ThreadPoolExecutor(self.workers) as pool:
            outcomes = list(pool.map(self._grade, problems, texts))
        for problem, outcome in zip(problems, outcomes, strict=True):
            if outcome.status == "error":
                log.warning("grading failed on %s: %s", problem.id, outcome.detail)
        statuses = [outcome.status for outcome in outcomes]
        return Scores([float(s == "passed") for s in statuses], statuses.count("timeout"), statuses.count("error"))

    def _grade(self, problem: Problem, text: str) -> Outcome:
        return self.sandbox.grade(_program(problem, text), problem.tests)

    def hopeless(self, problems: Sequence[Problem]) -> list[str | None]:
        """For each problem why no program can pass its tests; None where one can. Problems with a written solution are graded
        with it; of the others only the tests are read.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._hopeless, problems))

    def _hopeless(self, problem: Problem) -> str | None:
        """Why no program can pass the tests of this problem."""
        try:
            order_of(problem.tests)
        except NoTestsError as error:
            return f"whose tests {error}"
        if problem.solution is None:
            return None
        outcome = self._grade(problem, problem.solution)
        whys = {
            "failed": "whose written solution fails",
            "timeout": "whose written solution takes too long",
            "error": f"whose tests cannot be run: {outcome.detail}",
        }
        return whys.get(outcome.status)


def _program(problem: Problem, text: str) -> str:
    """The program in a completion, which may also go on with code that the problem has begun (`data.humaneval`).

    A thought has none, and where there is an answer tag only what is in it counts (`tags`).
    """
    text = answer_part(text)
    if {"continues", "entry_point"} <= problem.extra.keys():
        return continued(text, problem.extra["continues"], problem.extra["entry_point"])
    return program_of(text, names_of(problem.tests))
