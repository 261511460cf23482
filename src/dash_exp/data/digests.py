"""Digests of problems, by which two runs know whether they had the same ones. Each is 16 hexadecimal digits of a SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from dash_exp.core.types import Problem


def of_problem(problem: Problem) -> str:
    """Of what a test of a policy depends on: id, prompt, answer and tests, and messages and further columns where there are."""
    further = [part for part in (problem.messages, problem.extra) if part]
    return _digest([problem.id, problem.prompt, problem.answer, list(problem.tests), *further])


def of_sets(train: Sequence[Problem], tests: Mapping[str, Sequence[Problem]]) -> dict[str, str]:
    """One for each set, by the name of its setting: `data.train`, `data.tests.in_dist`.

    That of the training set depends on the solutions and the order as well; accuracy on a test set does not.
    """
    return {"data.train": _digest([[of_problem(p), p.solution] for p in train]), **of_tests(tests)}


def of_tests(tests: Mapping[str, Sequence[Problem]]) -> dict[str, str]:
    """One for each test set, by the name of its setting."""
    return {f"data.tests.{name}": _digest(sorted(map(of_problem, test))) for name, test in tests.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
