"""Advantages: pure functions of the rewards, (P, G) -> (P, G), one formula each."""

from __future__ import annotations

import torch
from torch import Tensor


def group_normalized(rewards_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """A = (r - mean_g r) / (std_g r + eps), with the unbiased standard deviation (GRPO, arXiv 2402.03300, eq. in 4.1.2).

    A group in which all rewards are equal gives 0. `[1, 0] -> [0.707, -0.707]`.
    """
    std_P1 = rewards_PG.std(dim=-1, keepdim=True)
    return group_centered(rewards_PG) / (std_P1 + eps)


def group_centered(rewards_PG: Tensor) -> Tensor:
    """A = r - mean_g r (Dr. GRPO, arXiv 2503.20783). A group in which all rewards are equal gives 0."""
    return rewards_PG - rewards_PG.mean(dim=-1, keepdim=True)


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
    """A = 1 where the reward is at least `least`, 0 elsewhere: fine-tuning on what was found right (rejection sampling)."""
    return (rewards_PG >= least).float()


def constant(rewards_PG: Tensor) -> Tensor:
    """A = 1, whatever the reward: with it the policy-gradient loss is the negative log-likelihood, i.e. SFT."""
    return torch.ones_like(rewards_PG)
