"""What is measured while the gradient of an optimizer step is computed, as sums that ranks and steps can add up."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dash_exp.core.types import MicroBatch


@dataclass
class StepSums:
    """Sums of one optimizer step, or of all of an outer step. Sums over tokens count a token as often as it was trained on.

    `measured` optimizer steps are in the means: all but those left out because a number in them was not finite.
    """

    taken: int = 0
    skipped: int = 0
    measured: int = 0
    denominators: int = 0
    grad_norms: float = 0.0
    loss: float | Tensor = 0.0
    trained_tokens: int = 0
    trained_completion_tokens: int = 0
    kl: float | Tensor = 0.0
    ratio: float | Tensor = 0.0
    ratio_k3: float | Tensor = 0.0
    max_log_ratio: float | Tensor = 0.0
    mismatch: float | Tensor = 0.0
    max_mismatch: float | Tensor = 0.0
    mismatch_tokens: int = 0
    clipped: float | Tensor = 0.0
    has_ratio: bool = False
    has_clip: bool = False

    def add(self, other: StepSums) -> None:
        """Add the sums of another optimizer step or rank. A number that is not finite stays so."""
        for name in (f.name for f in fields(self)):
            ours, theirs = float(getattr(self, name)), float(getattr(other, name))
            total = np.maximum(ours, theirs) if name.startswith(("max_", "has_")) else ours + theirs
            setattr(self, name, type(getattr(StepSums, name))(total))

    def add_ratio(self, logprobs_BT: Tensor, batch: MicroBatch, clipped_BT: Tensor | None, first_step: bool) -> None:
        """How far the policy has moved from the one that sampled. `first_step`: no optimizer step has been taken in this outer
        step, so that, without stale weights, any difference is a mismatch of sampler and trainer.
        """
        mask_BT = batch.completion_mask_BT
        if batch.old_logprobs_BT is not None:
            log_ratio_BT = (logprobs_BT - batch.old_logprobs_BT) * mask_BT
            self.has_ratio = True
            self.ratio += (log_ratio_BT.exp() * mask_BT).sum()
            self.ratio_k3 += (torch.expm1(log_ratio_BT) - log_ratio_BT).sum()  # 0 where masked
            self.max_log_ratio = log_ratio_BT.abs().max().clamp(min=self.max_log_ratio)
            if first_step:
                self.mismatch += log_ratio_BT.abs().sum()
                self.max_mismatch = self.max_log_ratio
                self.mismatch_tokens += int(mask_BT.sum())
        if clipped_BT is not None:
            self.has_clip = True
            self.clipped += (clipped_BT * mask_BT).sum()

    def add_pass(self, loss: Tensor, batch: MicroBatch) -> None:
        """A forward and backward pass that is done."""
        self.loss += loss.detach()
        self.trained_tokens += int(batch.attention_mask_BL.sum())
        self.trained_completion_tokens += int(batch.completion_mask_BT.sum())

    def means(self) -> dict[str, float | int | None]:
        """Means over these optimizer steps, or over the tokens they saw, under the names of `metrics.METRICS`."""
        steps, tokens = self.measured, max(self.trained_completion_tokens, 1)
        return {
            "loss/total": float(self.loss) / steps if steps else None,
            "loss/denominator": self.denominators / steps if steps else None,
            "grad/norm": self.grad_norms / steps if steps else None,
            "policy/ratio_mean": float(self.ratio) / tokens if self.has_ratio else None,
            "policy/ratio_max_log": float(self.max_log_ratio) if self.has_ratio else None,
            "policy/approx_kl_nats_per_token": float(self.ratio_k3) / tokens if self.has_ratio else None,
            "policy/clip_fraction": float(self.clipped) / tokens if self.has_clip else None,
            "mismatch/mean_nats": float(self.mismatch) / self.mismatch_tokens if self.mismatch_tokens else None,
            "mismatch/max_nats": float(self.max_mismatch) if self.mismatch_tokens else None,
        }
