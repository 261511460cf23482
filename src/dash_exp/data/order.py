"""Which problems an outer step takes, and which may be trained on at all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dash_exp.core.types import Problem


def indices_of_step(step: int, per_step: int, n: int, seed: int) -> list[int]:
    """Which of n problems outer step `step` (from 0) takes: consecutive slices of a shuffled pass over all, then of another.

    What is left at the end of a pass is skipped, so no problem comes twice in a step.
    """
    data_pass, i = divmod(step, n // per_step)
    order = np.random.default_rng([seed, data_pass]).permutation(n)
    return [int(j) for j in order[i * per_step : (i + 1) * per_step]]


def without(problems: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems whose prompt is not in the test sets: no run is graded on what it was trained on."""
    seen = {p.prompt.strip() for p in test}
    return [p for p in problems if p.prompt.strip() not in seen]
