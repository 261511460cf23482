"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.grading import math_answer, math_equal, warm_up
from dash_exp.rewards.patterns import last_matches, one_group
from dash_exp.rewards.workers import Workers

log = logging.getLogger(__name__)


class MathReward:
    """1 where math-verify finds the last answer of the completion equivalent to the gold answer (numbers, LaTeX, sets...).

    With `pattern` only its last match (its one group) is read, and a completion without one has no answer. Completions with
    tags need it: math-verify does not find 42 in `<answer>42</answer>`, and takes a number that stands before it.

    math-verify's own time limits are alarms, which work on a main thread only and cannot break into a long computation in C.
    Here every answer is graded in one of `workers` processes, and a process that needs more than `timeout_s` seconds for one
    is killed and replaced: this works from any thread. An answer that needs more than `memory_mb` MiB counts as an error,
    unless math-verify itself makes do without, which it does where it only looks for one more way to compare two answers.
    """

    grades = "answers"

    def __init__(self, timeout_s: float = 5.0, workers: int = 2, pattern: str | None = None, memory_mb: int = 1024) -> None:
        self.timeout_s = timeout_s
        self.pattern = one_group(pattern)
        self.workers = Workers(warm_up, timeout_s, workers, memory_mb)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        read, slow = self._read(texts)
        calls = [(p.answer, t) for p, t in zip(problems, read, strict=True)]
        equal = self.workers.map(math_equal, calls, [p.id for p in problems])
        return Scores([float(e or 0.0) for e in equal.values], equal.timeouts + slow, equal.errors)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """Answers as `grading.math_answer` spells them; None too where reading one did not come to an end."""
        read, slow = self._read(texts)
        found = self.workers.map(math_answer, [(t,) for t in read], [f"completion {i}" for i in range(len(texts))])
        if timeouts := found.timeouts + slow:
            log.warning("reading the answers of %d completions took more than %s s each", timeouts, self.timeout_s)
        return found.values

    def _read(self, texts: Sequence[str]) -> tuple[Sequence[str], int]:
        """What math-verify is to read, "" where there is no answer; how many took too long."""
        if self.pattern is None:
            return texts, 0
        found, timeouts = last_matches(self.pattern, texts, self.timeout_s)
        return [text or "" for text in found], timeouts

    def close(self) -> None:
        """Stop the worker processes."""
        self.workers.close()
