"""Policy losses: pure functions, one formula each.

They take the log-probabilities of the sampled tokens under the policy that is trained and under the one that sampled them
(`logprobs_BT`, `old_logprobs_BT`), the advantages (B,) and the mask (B, T). They return one value per token, to be minimised;
it is not yet weighted or summed (see `weighting`), and masked places may hold anything. Where the two policies are the same
(ratio 1), all have the gradient of `policy_gradient`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenLoss(NamedTuple):
    """`loss_BT`, and where a clip took the gradient away (`clipped_BT`, bool; None where the loss has no clip)."""

    loss_BT: Tensor
    clipped_BT: Tensor | None


def policy_gradient(logprobs_BT: Tensor, old_logprobs_BT: Tensor | None, advantages_B: Tensor, mask_BT: Tensor) -> TokenLoss:
    """-A log pi(token): its gradient is the on-policy policy gradient. The sampling policy does not enter."""
    return TokenLoss(-advantages_B[:, None] * logprobs_BT, None)


def ppo_clip(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi/pi_old per token (PPO, arXiv 1707.06347, eq. 7).

    With clip_high > clip_low it is DAPO's "clip higher" (arXiv 2503.14476, section 3.1).
    """
    ratio_BT = _ratio(logprobs_BT, old_logprobs_BT)
    return _pessimistic(ratio_BT, advantages_B, clip_low, clip_high)


def gspo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> TokenLoss:
    """PPO's loss with one ratio per completion, s = (pi(y)/pi_old(y))^(1/|y|) (GSPO, arXiv 2507.18071, section 4.1).

    Every token carries the loss of its completion, so that `ops.sequence_mean` gives the loss of the paper.
    """
    log_ratio_BT = (logprobs_BT - _known(old_logprobs_BT)) * mask_BT
    mean_log_ratio_B1 = log_ratio_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return _pessimistic(mean_log_ratio_B1.exp().expand_as(logprobs_BT), advantages_B, clip_low, clip_high)


def cispo(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip_low: float = 1.0,
    clip_high: float = 2.0,
) -> TokenLoss:
    """-sg[clip(r, 1 - clip_low, 1 + clip_high)] A log pi: the weight is clipped, no token loses its gradient
    (CISPO, arXiv 2506.13585, section 3.1; sg: no gradient). clip_low = 1 means no bound from below, as in that paper.
    """
    ratio_BT = _ratio(logprobs_BT, old_logprobs_BT).detach()
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return TokenLoss(-weight_BT * advantages_B[:, None] * logprobs_BT, weight_BT != ratio_BT)


def importance_weighted(
    loss: TokenLoss, logprobs_BT: Tensor, old_logprobs_BT: Tensor | None, mask_BT: Tensor, cap: float
) -> TokenLoss:
    """Each token's loss times min(pi/pi_old, cap), without gradient: truncated importance sampling, for a loss that has no
    ratio of its own and completions of weights or of an engine that are not quite the policy's (arXiv 1802.01561, eq. 2).
    """
    ratio_BT = _ratio(logprobs_BT, old_logprobs_BT).detach()
    return TokenLoss(loss.loss_BT * ratio_BT.clamp(max=cap), ratio_BT > cap)


def _pessimistic(ratio_BT: Tensor, advantages_B: Tensor, clip_low: float, clip_high: float) -> TokenLoss:
    plain_BT = ratio_BT * advantages_B[:, None]
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_B[:, None]
    return TokenLoss(-torch.minimum(plain_BT, clipped_BT), clipped_BT < plain_BT)


def _ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor | None) -> Tensor:
    return (logprobs_BT - _known(old_logprobs_BT)).exp()


def _known(old_logprobs_BT: Tensor | None) -> Tensor:
    assert old_logprobs_BT is not None, "this loss needs the log-probabilities of the policy that sampled"
    return old_logprobs_BT
