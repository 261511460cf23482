"""Programs, run against the tests of their problem."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.sandbox import Outcome, Sandbox

log = logging.getLogger(__name__)


class CodeReward:
    """1 where the program in the completion passes the tests of its problem, run in a sandbox (`sandbox.Sandbox`).

    A program that is wrong, raises or ends early gets 0; one that needs more than `timeout_s` seconds counts as a time-out, and
    a sandbox that failed, or tests that cannot be run, as an error. `workers` programs are graded at a time. UserError where
    this machine cannot isolate programs in the way that `isolation` names.
    """

    grades = "programs"

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


# Possessive: given back one by one, the characters of one long word after a fence would take time to the square of its length.
FENCED = re.compile(r"^[ \t]*+```[ \t]*+(\w*+)[^\n`]*+\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def program_of(text: str) -> str:
    """The program in a completion: its last block fenced as python, else its last fenced block, else all of it.

    `"So:\\n```python\\nx = 1\\n```" -> "x = 1\\n"`. A block that the token limit cut off counts as well.
    """
    blocks = FENCED.findall(text)
    python = [code for language, code in blocks if language.lower() in ("python", "python3", "py")]
    return (python or [code for _, code in blocks] or [text])[-1]
