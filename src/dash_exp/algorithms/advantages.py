"""Advantages: pure functions of the rewards, one formula each. P prompts, G completions of each: (P, G) -> (P, G).

Every advantage that compares a group starts from `group_centered`, which gives exactly 0 where its rewards are equal.
`training.scoring` calls them in 64 bits and rounds what they give to 32: advantages that are equal stay equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-6  # rewards of a group that differ by less than this share of the largest are equal: about 8 steps of 32 bits


def all_equal(rewards_PG: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, rounding errors aside, so that the group has no signal. Shape (P, 1), bool."""
    least_P1, most_P1 = rewards_PG.aminmax(dim=-1, keepdim=True)
    return most_P1 - least_P1 <= ROUNDING * torch.maximum(least_P1.abs(), most_P1.abs())


def group_normalized(rewards_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """A = (r - mean_g r) / (std_g r + eps), with the unbiased standard deviation (GRPO, arXiv 2402.03300, eq. in 4.1.2).

    A group in which all rewards are equal gives 0. `[1, 0] -> [0.707, -0.707]`.
    """
    std_P1 = rewards_PG.std(dim=-1, keepdim=True)
    return group_centered(rewards_PG) / (std_P1 + eps)


def group_centered(rewards_PG: Tensor) -> Tensor:
    """A = r - mean_g r (Dr. GRPO, arXiv 2503.20783). A group in which all rewards are equal gives 0.

    Exactly 0: the mean of eight rewards of 0.1 is not 0.1, and what rounding leaves would be taken for a signal.
    """
    centered_PG = rewards_PG - rewards_PG.mean(dim=-1, keepdim=True)
    return centered_PG.masked_fill(all_equal(rewards_PG), 0.0)


def group_leave_one_out(rewards_PG: Tensor) -> Tensor:
    """A = r - mean of the other rewards of the group = G/(G-1) (r - mean_g r) (RLOO, arXiv 2402.14740).

    The baseline of a completion does not depend on it, so the gradient is unbiased. `[1, 0, 0] -> [1, -0.5, -0.5]`.
    """
    group_size = rewards_PG.shape[-1]
    return group_centered(rewards_PG) * group_size / (group_size - 1)


def raw(rewards_PG: Tensor) -> Tensor:
    """A = r: no baseline (REINFORCE, Williams 1992)."""
    return rewards_PG.clone()


def right(rewards_PG: Tensor, least: float = 1.0) -> Tensor:
    """A = 1 where the reward is at least `least`, else 0: fine-tuning on the correct completions (rejection sampling)."""
    return (rewards_PG.float() >= least).float()  # in 32 bits: 0.7 + 0.2 + 0.1 is a little less than 1 in 64


def constant(rewards_PG: Tensor) -> Tensor:
    """A = 1 for every reward: with it the policy-gradient loss is the negative log-likelihood, i.e. SFT."""
    return torch.ones_like(rewards_PG)
