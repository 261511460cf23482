"""Which problems an outer step takes, and which problems may be trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dash_exp.core.types import Problem


def indices_of_step(step: int, per_step: int, n: int, seed: int) -> list[int]:
    """The indices of the `per_step` problems, out of n, that outer step `step` (from 0) takes.

    They are consecutive slices of a random order of all n problems; then a new order, keyed by (seed, pass), is drawn. What
    does not fill a step at the end of a pass is skipped, so no step has a problem twice. `per_step` must be at most n.
    """
    data_pass, i = divmod(step, n // per_step)
    order = np.random.default_rng([seed, data_pass]).permutation(n)
    return [int(j) for j in order[i * per_step : (i + 1) * per_step]]


def without(problems: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems whose prompt, without white space around it, is not a prompt in `test`: test problems are not trained on."""
    seen = {p.prompt.strip() for p in test}
    return [p for p in problems if p.prompt.strip() not in seen]
