"""Estimators of KL(policy || reference) per token, from the log-probabilities of the tokens that were sampled."""

from __future__ import annotations

import torch
from torch import Tensor


def k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """ref/pi - log(ref/pi) - 1 per token: nats, never negative. Shape (B, T).

    Tokens must come from the policy: then the *value* is an unbiased estimate of KL(pi || ref). As a loss term (GRPO and
    the paper put it there) its gradient is (1 - ref/pi) grad log pi, whose expectation is the gradient of the *reverse*
    direction KL(ref || pi), not of KL(pi || ref).
    Schulman, "Approximating KL divergence" (2020); GRPO, arXiv 2402.03300, eq. 4.
    """
    log_ratio_BT = ref_logprobs_BT - logprobs_BT
    return torch.exp(log_ratio_BT) - log_ratio_BT - 1.0
