"""Advantages and policy losses: pure functions, one formula each.

Advantages take rewards (P, G) and return (P, G). Losses return one value per token, (B, T), to be minimised; they are not
yet masked, weighted or summed (see `ops`).
"""

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


def constant(rewards_PG: Tensor) -> Tensor:
    """A = 1, whatever the reward: with it the policy-gradient loss is the negative log-likelihood, i.e. SFT."""
    return torch.ones_like(rewards_PG)


def policy_gradient(logprobs_BT: Tensor, advantages_B: Tensor) -> Tensor:
    """-A log pi(token): its gradient is the on-policy policy gradient (REINFORCE). Shape (B, T)."""
    return -advantages_B[:, None] * logprobs_BT
