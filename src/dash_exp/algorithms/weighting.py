"""How a (B, T) loss becomes one number: weights per token, and the denominator of an optimizer step.

A loss is reduced in two steps. A *weighting* turns the mask into one weight per token, and the weighted sum of a micro-batch is
backpropagated. After the last micro-batch of an optimizer step the gradient is divided once by the *denominator* of that step.
So the division into micro-batches or sampling calls never changes the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dash_exp.core.types import Sample


def sequence_mean(mask_BT: Tensor) -> Tensor:
    """Each completion has weight 1, shared equally by its tokens (GRPO). `[1,1,0] -> [1/2,1/2,0]`. Shape (B, T)."""
    return mask_BT / mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)


def token_sum(mask_BT: Tensor) -> Tensor:
    """Each token has weight 1, so long completions count more (DAPO, with the denominator `per_kept_token`). Shape (B, T)."""
    return mask_BT.float()


@dataclass
class StepCounts:
    """How many completions, and completion tokens, one optimizer step has sampled and has kept after the filter."""

    sampled: int = 0
    kept: int = 0
    sampled_tokens: int = 0
    kept_tokens: int = 0

    def add(self, samples: Sequence[Sample], keep: Sequence[bool]) -> None:
        """Count these completions; those with `keep` enter the gradient."""
        lengths = [len(s.completion_ids) for s in samples]
        self.sampled += len(samples)
        self.kept += sum(keep)
        self.sampled_tokens += sum(lengths)
        self.kept_tokens += sum(n for n, kept in zip(lengths, keep, strict=True) if kept)


def per_sampled(counts: StepCounts) -> int:
    """Divide by the completions sampled: dropping completions without a gradient does not change the step."""
    return counts.sampled


def per_kept(counts: StepCounts) -> int:
    """Divide by the completions kept: the step keeps its size when many are dropped."""
    return counts.kept


def per_kept_token(counts: StepCounts) -> int:
    """Divide by the tokens kept."""
    return counts.kept_tokens


def per_sampled_length(counts: StepCounts, max_tokens: int) -> int:
    """Divide by completions sampled x the longest completion allowed: a token counts the same in a long one (Dr. GRPO)."""
    return counts.sampled * max_tokens
