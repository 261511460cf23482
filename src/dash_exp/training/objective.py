"""What an optimizer step minimizes, and how it steps: arguments of `PolicyModule` that belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dash_exp.algorithms.kl import Estimator, Schedule, k3
from dash_exp.algorithms.losses import TokenLoss, importance_weighted
from dash_exp.algorithms.weighting import StepCounts, per_sampled, sequence_mean
from dash_exp.core.types import MicroBatch

Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor], TokenLoss]


@dataclass(frozen=True)
class Objective:
    """`weighting` (a weight per token) and `denominator` (one number per optimizer step) turn token losses into one number: see
    `algorithms.weighting`. `kl_coef` gives the coefficient of each outer step. `importance_cap` weights tokens by their
    truncated ratio to the policy that sampled; None leaves that out.
    """

    loss: Loss
    kl_coef: Schedule
    weighting: Callable[[Tensor], Tensor] = sequence_mean
    denominator: Callable[[StepCounts], int] = per_sampled
    kl: Estimator = k3
    importance_cap: float | None = None

    def token_loss(self, logprobs_BT: Tensor, batch: MicroBatch) -> TokenLoss:
        """The policy loss of each token, shape (B, T), without KL and weights; and where a clip took the gradient away."""
        mask_BT = batch.completion_mask_BT
        losses = self.loss(logprobs_BT, batch.old_logprobs_BT, batch.advantages_B, mask_BT)
        if self.importance_cap is None:
            return losses
        return importance_weighted(losses, logprobs_BT, batch.old_logprobs_BT, mask_BT, self.importance_cap)


@dataclass(frozen=True)
class Optimization:
    """`optimizer` is called with the parameters, `schedule` with the optimizer; the schedule counts outer steps. Gradients are
    clipped to `clip_norm`.

    An outer step takes `epochs` x `minibatches` optimizer steps, 1 unless it is PPO: see `batch.parts`, which `seed` shuffles.
    More than one needs all completions of the outer step in one sampling call.
    """

    optimizer: Callable[..., Optimizer]
    schedule: Callable[..., LRScheduler]
    clip_norm: float
    epochs: int = 1
    minibatches: int = 1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an outer step."""
        return self.epochs * self.minibatches
