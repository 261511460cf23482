"""KL(policy || reference): estimators per token, schedules of the coefficient, and the penalty on rewards.

Estimators take the log-probabilities of sampled tokens under the policy and the reference, (B, T), and return nats per token.
Each docstring says what the *value* estimates, and what the *gradient* estimates in the two places where it can stand, for
tokens x sampled from the policy pi:

- `place: loss`: the estimator is differentiated, E_x[grad k(x)];
- `place: reward`: it is a cost of the completion and reaches the policy by the policy gradient, E_x[k(x) grad log pi(x)].

In the loss each token counts given the tokens before it, as if they were not of the policy's making; in the reward the sum
over the completion counts, so there k1 gives the gradient of the KL between whole completions (with a token weight of 1;
`ops.sequence_mean` divides it by the length, as it does the reward's). Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]

# --- estimators --------------------------------------------------------------------------------------------------------


def k1(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """log(pi/ref). Value: unbiased for KL(pi || ref), may be negative.

    In the loss its gradient is grad log pi, whose expectation is 0: noise and no regularisation. In the reward its
    gradient is that of KL(pi || ref), exactly.
    """
    return logprobs_BT - ref_logprobs_BT


def k2(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """(log(pi/ref))^2 / 2. Value: biased, never negative, close to KL(pi || ref) while the two are close.

    In the loss its gradient is log(pi/ref) grad log pi, whose expectation is the gradient of KL(pi || ref), exactly. In
    the reward it gives the gradient of E[k2] less that of KL(pi || ref): not a KL.
    """
    return 0.5 * (logprobs_BT - ref_logprobs_BT) ** 2


def k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """ref/pi - log(ref/pi) - 1. Value: unbiased for KL(pi || ref), never negative (GRPO, arXiv 2402.03300, eq. 4).

    In the loss, where GRPO and the paper put it, its gradient is (1 - ref/pi) grad log pi, whose expectation is the gradient
    of the *other* direction, KL(ref || pi). In the reward it gives the gradient of KL(pi || ref) less that of KL(ref || pi).
    """
    log_ratio_BT = ref_logprobs_BT - logprobs_BT
    return torch.expm1(log_ratio_BT) - log_ratio_BT


# --- schedules of the coefficient --------------------------------------------------------------------------------------


@dataclass
class Schedule:
    """The coefficient of outer step `step` (from 0) of `steps`. `coef` is the one it starts from."""

    coef: float
    steps: int

    def __call__(self, step: int) -> float:
        raise NotImplementedError

    def observe(self, nats_per_token: float) -> None:
        """Learn the KL of the step that has just ended."""

    @property
    def always_zero(self) -> bool:
        """Then no reference model is needed."""
        return self.coef == 0


@dataclass
class Constant(Schedule):
    """`coef` in every step."""

    def __call__(self, step: int) -> float:
        return self.coef


@dataclass
class Linear(Schedule):
    """From `coef` at the first step to `final` at the last, in equal parts."""

    final: float = 0.0

    def __call__(self, step: int) -> float:
        return self.coef + (self.final - self.coef) * step / max(self.steps - 1, 1)

    @property
    def always_zero(self) -> bool:
        return self.coef == 0 and self.final == 0


@dataclass
class Cosine(Linear):
    """From `coef` at the first step to `final` at the last, along half a cosine."""

    def __call__(self, step: int) -> float:
        return self.final + (self.coef - self.final) * 0.5 * (1 + math.cos(math.pi * step / max(self.steps - 1, 1)))


@dataclass
class Adaptive(Schedule):
    """Steers towards a KL of `target` nats per token: after a step with KL d the coefficient is multiplied by
    1 + rate x clip(d/target - 1, -0.2, 0.2) (Ziegler et al., arXiv 1909.08593, section 2.2, with rate for n/horizon).
    """

    target: float = 0.01
    rate: float = 0.5
    _current: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._current = self.coef

    def __call__(self, step: int) -> float:
        return self._current

    def observe(self, nats_per_token: float) -> None:
        if not math.isfinite(nats_per_token):
            return  # of a step that the watch leaves out: it must not stay in the coefficient
        error = min(max(nats_per_token / self.target - 1, -0.2), 0.2)
        self._current *= 1 + self.rate * error
