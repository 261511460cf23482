"""Which completions enter the gradient: (rewards, advantages) -> keep mask, all (P, G), before any forward pass.

P prompts, G completions of each. The rewards are those of the reward function; penalties for truncation or KL are only in the
advantages. A dropped completion adds neither a policy gradient nor a KL term to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import BoolTensor, Tensor

from dash_exp.algorithms.advantages import all_equal


@dataclass(frozen=True)
class Filter:
    """A filter, as `rollout` uses it.

    `recompute_advantages`: whether the advantages of the kept completions are computed again from the kept rewards alone; every
    group must then keep the same number. `refill_rounds`: how many more times prompts are sampled to replace groups of which
    nothing is kept.
    """

    recompute_advantages = False
    refill_rounds = 0

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        """True for the completions that are kept, shape (P, G)."""
        raise NotImplementedError


@dataclass(frozen=True)
class KeepAll(Filter):
    """Keep every completion (No-GF)."""

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        return cast(BoolTensor, torch.ones_like(advantages_PG, dtype=torch.bool))


@dataclass(frozen=True)
class AdvantageAbove(Filter):
    """Keep where |A| > threshold: the paper's gradient filtering (its run script uses 0.1).

    At threshold 0 only completions with A = 0 are dropped.
    """

    threshold: float

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        return cast(BoolTensor, advantages_PG.abs() > self.threshold)


@dataclass(frozen=True)
class Quantile(Filter):
    """Keep the `1 - drop` share of the completions of a sampling call with the largest |A|; A = 0 is never kept.

    Completions with the same |A| at the cut are all kept, so it may be more than the share.
    |A| = [0, 1, 2, 3] at drop 0.5 keeps 2 and 3.
    """

    drop: float

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        size_PG = advantages_PG.abs()
        kept = size_PG.numel() - int(self.drop * size_PG.numel())
        if kept == 0:
            return cast(BoolTensor, torch.zeros_like(size_PG, dtype=torch.bool))
        cut = size_PG.flatten().sort(descending=True).values[kept - 1]
        return cast(BoolTensor, (size_PG >= cut) & (size_PG > 0))


@dataclass(frozen=True)
class PODS(Filter):
    """Keep the `per_group` completions of each group whose rewards have the largest variance: max-variance down-sampling
    (PODS, arXiv 2504.13818; they are the i lowest and the per_group - i highest for some i). Advantages are
    computed again from the kept rewards, as in that paper. `[0, 0, 0, 1]` with per_group 2 keeps one 0 and the 1.
    """

    per_group: int
    recompute_advantages = True

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        n, group_size = self.per_group, rewards_PG.shape[1]
        sorted_PG, order_PG = rewards_PG.sort(dim=-1, stable=True)
        # candidate i keeps the i lowest and the n - i highest
        candidates = [[*range(i), *range(group_size - n + i, group_size)] for i in range(n + 1)]
        variance_PC = torch.stack([sorted_PG[:, c].var(dim=-1, correction=0) for c in candidates], dim=1)
        chosen_Pn = torch.tensor(candidates)[variance_PC.argmax(dim=1)]
        keep_PG = torch.zeros_like(rewards_PG, dtype=torch.bool)
        return cast(BoolTensor, keep_PG.scatter(1, order_PG.gather(1, chosen_Pn), True))


@dataclass(frozen=True)
class CPPO(Filter):
    """Keep the floor(G (1 - prune)) completions of each group with the largest |A|, at least one (CPPO, arXiv 2503.22342).

    Of completions with the same |A| those sampled first are kept. `[2, -1, 0.5, -1.5]` at prune 0.5 keeps 2 and -1.5.
    """

    prune: float

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        group_size = advantages_PG.shape[1]
        n = max(1, int(group_size * (1 - self.prune) + 1e-9))
        best_Pn = advantages_PG.abs().sort(dim=-1, descending=True, stable=True).indices[:, :n]
        keep_PG = torch.zeros_like(advantages_PG, dtype=torch.bool)
        return cast(BoolTensor, keep_PG.scatter(1, best_Pn, True))


@dataclass(frozen=True)
class ZeroVariance(Filter):
    """Keep the groups whose rewards are not all equal; sample other prompts in place of the rest, up to `refill_rounds` times
    (dynamic sampling of DAPO, arXiv 2503.14476, section 3.2). `refill_rounds: 0` only drops.
    """

    refill_rounds: int = 0

    def __call__(self, rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
        return cast(BoolTensor, ~all_equal(rewards_PG).expand_as(rewards_PG))
