"""Which completions enter the gradient: (rewards, advantages) -> keep mask, all (P, G), before any forward pass."""

from __future__ import annotations

from typing import cast

import torch
from torch import BoolTensor, Tensor


def keep_all(rewards_PG: Tensor, advantages_PG: Tensor) -> BoolTensor:
    """Keep every completion (No-GF)."""
    return cast(BoolTensor, torch.ones_like(advantages_PG, dtype=torch.bool))


def advantage_above(rewards_PG: Tensor, advantages_PG: Tensor, threshold: float) -> BoolTensor:
    """Keep where |A| > threshold: the paper's gradient filtering (its run script uses 0.1).

    A dropped completion gives neither a policy gradient nor a KL term. At threshold 0 only completions with A = 0 go.
    """
    return cast(BoolTensor, advantages_PG.abs() > threshold)
