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
    """The problems that are not in `test`: test problems are not trained on. White space around texts does not count.

    Two conversations are the same problem if all of their messages are the same. A conversation and a bare prompt are, if the
    prompt is what the user asks last.
    """
    bare, all_prompts, conversations = set(), set(), set()
    for p in test:
        all_prompts.add(p.prompt.strip())
        conversations.add(_conversation(p))
        if not p.messages:
            bare.add(p.prompt.strip())

    def is_new(p: Problem) -> bool:
        if not p.messages:
            return p.prompt.strip() not in all_prompts
        return p.prompt.strip() not in bare and _conversation(p) not in conversations

    return [p for p in problems if is_new(p)]


def _conversation(problem: Problem) -> tuple[tuple[str, str], ...]:
    return tuple((role, text.strip()) for role, text in problem.messages)
