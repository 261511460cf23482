"""The prompts of an outer step under a rule of `algorithms.selection`: in which order, which are skipped, which are screened.

The rules themselves are not here, nor is what an outer step does with the prompts (`rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import BoolTensor, Tensor, tensor

from dash_exp.algorithms.advantages import all_equal
from dash_exp.algorithms.selection import Group, Selection
from dash_exp.core.types import Completion, Prompt, Rollouts
from dash_exp.data import order
from dash_exp.rewards.base import Scores


class Candidates:
    """The training prompts in the order in which an outer step considers them: its own `per_step`, then all others, shuffled.

    A prompt is skipped where its random number, which belongs to (seed, outer step, prompt), is not below the chance that
    `selection` gives it. `skipped`: those of the last outer step, by the id of their problem.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int, selection: Selection) -> None:
        self.prompts = prompts
        self.per_step = per_step
        self.seed = seed
        self.selection = selection
        self.skipped: dict[str, Prompt] = {}

    def own(self, step: int) -> list[Prompt]:
        """The problems of outer step `step` (from 0): see `data.order`."""
        return [self.prompts[i] for i in self._own(step)]

    def chosen(self, step: int) -> list[Prompt]:
        """The first `per_step` candidates that are not skipped; and skipped ones where there are no others left."""
        self.skipped = {}
        own = self._own(step)
        found = [*self._unskipped(own, step)]
        if len(found) < len(own):
            found += islice(self.others(self.own(step), step), len(own) - len(found))
        for problem in [*self.skipped][: len(own) - len(found)]:
            found.append(self.skipped.pop(problem))
        return found

    def others(self, taken: Sequence[Prompt], step: int) -> Iterator[Prompt]:
        """The prompts that are not in `taken`, in an order that belongs to this step, without those that are skipped."""
        ids = {p.problem.id for p in taken}
        indices = np.random.default_rng([self.seed, step, 1]).permutation(len(self.prompts))
        yield from self._unskipped((int(i) for i in indices if self.prompts[i].problem.id not in ids), step)

    def _own(self, step: int) -> list[int]:
        return order.indices_of_step(step, self.per_step, len(self.prompts), self.seed)

    def _draws(self, step: int) -> Sequence[float]:
        """A random number in [0, 1) for each prompt."""
        return np.random.default_rng([self.seed, step, 2]).random(len(self.prompts)).tolist()

    def _unskipped(self, indices: Iterable[int], step: int) -> Iterator[Prompt]:
        draws = self._draws(step)
        for i in indices:
            prompt = self.prompts[i]
            if draws[i] < self.selection.chance(prompt.problem.id):
                yield prompt
            else:
                self.skipped[prompt.problem.id] = prompt


def groups_of(rollouts: Rollouts) -> list[Group]:
    """What a sampling call tells the rule: the rewards of each prompt, those that were only screened as well."""
    found = [(p.problem.id, rewards_G) for p, rewards_G in zip(rollouts.prompts, rollouts.rewards_PG, strict=True)]
    return found + (groups_of(rollouts.aside) if rollouts.aside is not None else [])


# --- screening -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graded:
    """Graded completions of P prompts, n of each, in group-major order."""

    prompts: list[Prompt]
    completions: list[Completion]
    texts: list[str]
    scores: Scores

    @property
    def rewards(self) -> Tensor:
        """Shape (P, n)."""
        return tensor(self.scores.rewards, dtype=torch.float64).view(len(self.prompts), -1)

    def of(self, places: Sequence[int]) -> Graded:
        """Those of the prompts at these places. What could not be graded is counted with none of them."""
        n = len(self.completions) // len(self.prompts)
        at = [p * n + i for p in places for i in range(n)]
        components = {name: [values[i] for i in at] for name, values in self.scores.components.items()}
        return Graded(
            [self.prompts[p] for p in places],
            [self.completions[i] for i in at],
            [self.texts[i] for i in at],
            Scores([self.scores.rewards[i] for i in at], components=components),
        )


# Samples and grades `count` completions of each of these prompts, from the index `start` of their groups on.
SampleGraded = Callable[[Sequence[Prompt], int, int], Graded]


def screened(
    rule: Selection, prompts: Iterator[Prompt], wanted: int, group_size: int, sample: SampleGraded
) -> tuple[Graded, Graded | None]:
    """The groups of the first `wanted` prompts that `rule` finds a signal in, and the first completions of all others.

    Where it finds one in none, the first prompt has its group all the same: an outer step is never empty. Gradings that did
    not finish are all counted in the scores of the groups.
    """
    assert rule.first is not None
    first: Graded | None = None
    signal: list[bool] = []
    for _ in range(rule.rounds):
        missing = wanted - sum(signal)
        more = list(islice(prompts, rule.candidates(missing, len(signal), sum(signal)))) if missing > 0 else []
        if not more:
            break
        block = sample(more, 0, rule.first)
        first = block if first is None else _below(first, block)
        signal = (~all_equal(first.rewards)).flatten().tolist()
    assert first is not None
    chosen = [i for i, has in enumerate(signal) if has][:wanted] or [0]
    left_out = [i for i in range(len(signal)) if i not in set(chosen)]
    begun = first.of(chosen)
    groups = _beside(begun, sample(begun.prompts, rule.first, group_size - rule.first))
    scores = replace(
        groups.scores,
        timeouts=groups.scores.timeouts + first.scores.timeouts,
        errors=groups.scores.errors + first.scores.errors,
    )
    return replace(groups, scores=scores), first.of(left_out) if left_out else None


def put_aside(graded: Graded, policy_version: int | None) -> Rollouts:
    """Completions that are recorded and counted but not weighed: their advantages are 0, and none is kept."""
    zeros_Pn = torch.zeros_like(graded.rewards, dtype=torch.float32)
    return Rollouts(
        prompts=graded.prompts,
        completions=graded.completions,
        texts=graded.texts,
        rewards_PG=graded.rewards,
        advantages_PG=zeros_Pn,
        before_filter_PG=zeros_Pn,
        keep_PG=cast(BoolTensor, zeros_Pn.bool()),
        policy_version=policy_version,
        components=graded.scores.components,
    )


def _below(first: Graded, second: Graded) -> Graded:
    """The prompts of both."""
    return Graded(
        first.prompts + second.prompts,
        first.completions + second.completions,
        first.texts + second.texts,
        _together(first.scores, second.scores, [*range(len(first.texts) + len(second.texts))]),
    )


def _beside(first: Graded, second: Graded) -> Graded:
    """The completions of both for each prompt, which both have in the same order."""
    total, size = len(first.texts), len(first.prompts)
    n, m = total // size, len(second.texts) // size
    at = [i for p in range(size) for i in (*range(p * n, (p + 1) * n), *range(total + p * m, total + (p + 1) * m))]
    completions, texts = first.completions + second.completions, first.texts + second.texts
    return Graded(
        first.prompts, [completions[i] for i in at], [texts[i] for i in at], _together(first.scores, second.scores, at)
    )


def _together(first: Scores, second: Scores, at: Sequence[int]) -> Scores:
    """The scores of both, in the order of these places."""
    rewards = first.rewards + second.rewards
    parts = {name: values + second.components[name] for name, values in first.components.items()}
    return Scores(
        [rewards[i] for i in at],
        first.timeouts + second.timeouts,
        first.errors + second.errors,
        {name: [values[i] for i in at] for name, values in parts.items()},
    )
