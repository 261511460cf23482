"""Completions -> rewards -> advantages -> filter: everything that happens between sampling and the first forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import BoolTensor, Tensor, tensor

from dash_exp.algorithms.advantages import group_leave_one_out
from dash_exp.algorithms.filters import Filter
from dash_exp.algorithms.kl import Schedule
from dash_exp.algorithms.kl_penalty import Penalty
from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt, Rollouts
from dash_exp.rewards.base import Reward, Scores

Advantage = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Truncated:
    """What is done with completions that the token limit cut off: `score` them as they are, subtract `penalty` from their
    reward (`penalize`), or leave them out of the gradient (`mask`; they still count in the mean of their group).
    """

    choice: str = "score"
    penalty: float = 0.0


@dataclass(frozen=True)
class Scoring:
    """`keep` filters by rewards and advantages. `kl_penalty`, with the coefficients of `kl_coef`, is the KL in the reward; both
    are None where there is none.
    """

    reward: Reward
    advantage: Advantage
    keep: Filter
    truncated: Truncated = Truncated()
    kl_penalty: Penalty | None = None
    kl_coef: Schedule | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: list[Completion],
        texts: list[str],
        step: int,
        policy_version: int | None,
        scores: Scores | None = None,
    ) -> Rollouts:
        """Grade and filter P x G completions, in group-major order, of outer step `step`. `scores`: where they are graded."""
        of_completion = [p for p in prompts for _ in range(len(completions) // len(prompts))]
        scores = self.grade(prompts, texts) if scores is None else scores
        rewards_PG = tensor(scores.rewards, dtype=torch.float64).view(len(prompts), -1)
        truncated_PG = tensor([c.truncated for c in completions]).view_as(rewards_PG)
        penalty_PG, kl_nats = self._penalty(of_completion, completions, step, rewards_PG)
        before_PG = self._advantages(rewards_PG, truncated_PG, penalty_PG)
        keep_PG, advantages_PG = self.keep(rewards_PG, before_PG), before_PG
        if self.keep.recompute_advantages:
            kept = [None if x is None else x[keep_PG].view(len(prompts), -1) for x in (rewards_PG, truncated_PG, penalty_PG)]
            advantages_PG = before_PG.clone()
            advantages_PG[keep_PG] = self._advantages(*kept).flatten()  # type: ignore[arg-type]
        if self.truncated.choice == "mask":
            keep_PG = cast(BoolTensor, keep_PG & ~truncated_PG)
        return Rollouts(
            prompts=list(prompts),
            completions=completions,
            texts=texts,
            rewards_PG=rewards_PG,
            advantages_PG=advantages_PG,
            before_filter_PG=before_PG,
            keep_PG=keep_PG,
            policy_version=policy_version,
            grader_timeouts=scores.timeouts,
            grader_errors=scores.errors,
            components=scores.components,
            kl_nats=kl_nats,
        )

    def grade(self, prompts: Sequence[Prompt], texts: list[str]) -> Scores:
        """The scores of P x G completions in group-major order."""
        return self.reward([p.problem for p in prompts for _ in range(len(texts) // len(prompts))], texts)

    def _advantages(self, rewards_PG: Tensor, truncated_PG: Tensor, penalty_PG: Tensor | None) -> Tensor:
        """Advantages of the rewards less what truncation costs; and less the KL penalty against that of the others.

        The KL penalty has a baseline of its own and is not divided by the standard deviation of the rewards: in a group of
        almost equal rewards that would cancel its coefficient. All is computed in 64 bits and then rounded to 32, so that
        filters see equal advantages as equal. Raises UserError for an advantage that is not finite, as rewards always are.
        """
        if self.truncated.choice == "penalize":
            rewards_PG = rewards_PG - self.truncated.penalty * truncated_PG
        advantages_PG = self.advantage(rewards_PG)
        if not advantages_PG.isfinite().all():
            raise UserError(
                "algo.advantage",
                f"gives NaN or infinite advantages for groups of {rewards_PG.shape[1]} completions",
                "Use another advantage, or larger groups: algo.group_size=8",
            )
        if penalty_PG is not None:
            advantages_PG = advantages_PG - group_leave_one_out(penalty_PG)
        return advantages_PG.float()

    def _penalty(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], step: int, rewards_PG: Tensor
    ) -> tuple[Tensor | None, float | None]:
        """Coefficient x KL of each completion, shape (P, G), and the KL of all in nats; None where the reward holds no KL."""
        if self.kl_penalty is None or self.kl_coef is None:
            return None, None
        penalty_B, k3_B = self.kl_penalty(prompts, completions)
        return self.kl_coef(step) * penalty_B.view_as(rewards_PG), float(k3_B.sum())


def joined(first: Rollouts, second: Rollouts) -> Rollouts:
    """Both sampling calls as one."""
    return Rollouts(
        prompts=first.prompts + second.prompts,
        completions=first.completions + second.completions,
        texts=first.texts + second.texts,
        rewards_PG=torch.cat([first.rewards_PG, second.rewards_PG]),
        advantages_PG=torch.cat([first.advantages_PG, second.advantages_PG]),
        before_filter_PG=torch.cat([first.before_filter_PG, second.before_filter_PG]),
        keep_PG=cast(BoolTensor, torch.cat([first.keep_PG, second.keep_PG])),
        policy_version=first.policy_version,
        grader_timeouts=first.grader_timeouts + second.grader_timeouts,
        grader_errors=first.grader_errors + second.grader_errors,
        components={name: values + second.components[name] for name, values in first.components.items()},
        kl_nats=None if first.kl_nats is None or second.kl_nats is None else first.kl_nats + second.kl_nats,
        refill_rounds=first.refill_rounds + 1,
    )


def at_most(rollouts: Rollouts, prompts: int) -> Rollouts:
    """Of the groups that kept something only the first `prompts`: a refill may have found more."""
    signal_P = rollouts.keep_PG.any(dim=1)
    keep_PG = rollouts.keep_PG & (signal_P.cumsum(0) <= prompts)[:, None]
    return replace(rollouts, keep_PG=cast(BoolTensor, keep_PG))
