"""Rewards: problems and completions in, one number each out. Correct is 1, wrong is 0.

Grading that takes too long or breaks is never passed off as a wrong answer: it is counted apart (`Scores.timeouts`,
`Scores.errors`), although its reward can only be 0.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Protocol

from pebble import ProcessPool

from dash_exp.errors import UserError
from dash_exp.grading import math_equal, warm_up
from dash_exp.sandbox import Outcome, Sandbox
from dash_exp.types import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One reward per completion, and how many gradings did not come to an end.

    `components` holds, by name, the parts of a summed reward before their weights: one number per completion each.
    """

    rewards: list[float]
    timeouts: int = 0
    errors: int = 0
    components: Mapping[str, list[float]] = field(default_factory=dict)


class Reward(Protocol):
    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        """Grade `texts[i]` as a completion of `problems[i]`."""


class ExactReward:
    """1 where the last match of `pattern` (its first group) is the answer, character by character.

    `pattern: null` compares the whole completion, stripped.
    """

    def __init__(self, pattern: str | None = None) -> None:
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise UserError(f"reward.pattern={pattern}", f"is no regular expression ({error})", "Mend it") from error
        if self.pattern and self.pattern.groups != 1:
            raise UserError(
                f"reward.pattern={pattern}",
                f"has {self.pattern.groups} groups",
                "Put one pair of ( ) around the answer",
            )

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        return Scores([float(self._answer(t) == p.answer.strip()) for p, t in zip(problems, texts, strict=True)])

    def _answer(self, text: str) -> str | None:
        if self.pattern is None:
            return text.strip()
        found = self.pattern.findall(text)
        return found[-1].strip() if found else None


class MathReward:
    """1 where math-verify finds the last answer of the completion equivalent to the gold answer (numbers, LaTeX, sets...).

    math-verify's own time limits are alarms, which work on a main thread only and cannot break into a long computation in C.
    Here every answer is graded in one of `workers` processes and a process that needs more than `timeout_s` seconds for one
    is killed and replaced: this works from any thread. The pool starts with the first call and serves every later one.
    """

    def __init__(self, timeout_s: float = 5.0, workers: int = 2) -> None:
        self.timeout_s = timeout_s
        self.workers = workers
        self._pool: ProcessPool | None = None

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        if self._pool is None:
            # spawn: forking a process that runs torch's threads can deadlock the child
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self.workers, initializer=warm_up, context=context)
        futures = [
            self._pool.schedule(math_equal, args=[p.answer, t], timeout=self.timeout_s)
            for p, t in zip(problems, texts, strict=True)
        ]
        rewards, timeouts, errors = [], 0, 0
        for problem, future in zip(problems, futures, strict=True):
            reward = 0.0
            try:
                reward = float(future.result())
            except FutureTimeoutError:
                timeouts += 1
            except Exception as error:  # a worker that died, or math-verify's own failure: counted and shown
                errors += 1
                log.warning("grading failed on %s: %s: %s", problem.id, type(error).__name__, error)
            rewards.append(reward)
        return Scores(rewards, timeouts, errors)

    def close(self) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


class CodeReward:
    """1 where the program in the completion passes the tests of its problem, run in a sandbox (`sandbox.Sandbox`).

    A program that is wrong, raises or ends early gets 0; one that needs more than `timeout_s` seconds counts as a time-out, and
    a sandbox that failed, or tests that cannot be run, as an error. `workers` programs are graded at a time. UserError where
    this machine cannot isolate programs in the way that `isolation` names.
    """

    def __init__(
        self,
        isolation: str = "bwrap",
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        processes: int = 1,
        workers: int = 2,
    ) -> None:
        self.workers = workers
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
        return self.sandbox.grade(program_of(text), problem.tests)


FENCED = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def program_of(text: str) -> str:
    """The program in a completion: its last block fenced as python, else its last fenced block, else all of it.

    `"So:\\n```python\\nx = 1\\n```" -> "x = 1\\n"`. A block that the token limit cut off counts as well.
    """
    blocks = FENCED.findall(text)
    python = [code for language, code in blocks if language.lower() in ("python", "python3", "py")]
    return (python or [code for _, code in blocks] or [text])[-1]
