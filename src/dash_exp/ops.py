"""Token log-probabilities, and how a (B, T) loss becomes one number.

A loss is reduced in two moves. A *weighting* turns the mask into one weight per token, and the weighted sum of a micro-batch
is backpropagated. After the last micro-batch of an optimizer step the gradient is divided once by the step's *denominator*.
So how the step was cut into micro-batches or sampling calls never enters the gradient.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.types import MicroBatch, Packed


def token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """Log-probabilities (nats) of the completion tokens at the sampling temperature. Shape (B, T), 0 where masked.

    Logits are computed for completion tokens only.
    """
    mask_BT = batch.completion_mask_BT
    if batch.packed is not None:
        return _packed_token_logprobs(model, batch.packed, mask_BT, temperature)
    n_completion = mask_BT.shape[1]
    output = model(
        input_ids=batch.input_ids_BL,
        attention_mask=batch.attention_mask_BL,
        position_ids=positions(batch.attention_mask_BL),
        logits_to_keep=n_completion + 1,  # the token before each completion token predicts it
        use_cache=False,
    )
    logits_BTV = output.logits[:, :-1].float() / temperature
    targets_BT = batch.input_ids_BL[:, -n_completion:]
    logprobs_BT = -F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    return logprobs_BT.masked_fill(mask_BT == 0, 0.0)


def _packed_token_logprobs(model: PreTrainedModel, packed: Packed, mask_BT: Tensor, temperature: float) -> Tensor:
    """The same from a row without padding."""
    output = model(
        input_ids=packed.ids_N[None],
        attention_mask=mask_BT.new_zeros(1, 1, 1, 1),  # four axes: Transformers makes no mask, and `packing` has its own
        position_ids=packed.positions_N[None],
        logits_to_keep=packed.before_K,
        use_cache=False,
        packed=packed,
    )
    logits_KV = output.logits[0].float() / temperature
    logprobs_K = -F.cross_entropy(logits_KV, packed.ids_N[-len(logits_KV) :], reduction="none")
    return logprobs_K.new_zeros(mask_BT.shape).index_put((packed.row_K, packed.column_K), logprobs_K)


def positions(attention_mask_BL: Tensor) -> Tensor:
    """Position of each token in its own sequence; padding in front counts as 0. `[0,0,1,1] -> [0,0,0,1]`."""
    return (attention_mask_BL.cumsum(dim=-1) - 1).clamp(min=0)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for sampling and training alike, so that both sides compute the same log-probabilities."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def sequence_mean(mask_BT: Tensor) -> Tensor:
    """Each completion weighs 1, shared equally by its tokens (GRPO). `[1,1,0] -> [1/2,1/2,0]`. Shape (B, T)."""
    return mask_BT / mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)


def token_sum(mask_BT: Tensor) -> Tensor:
    """Each token weighs 1, so long completions weigh more (DAPO, with the denominator `per_kept_token`). Shape (B, T)."""
    return mask_BT.float()


@dataclass
class StepCounts:
    """What one optimizer step has seen, in completions and in completion tokens."""

    sampled: int = 0
    kept: int = 0
    sampled_tokens: int = 0
    kept_tokens: int = 0


def per_sampled(counts: StepCounts) -> int:
    """Divide by the completions sampled: dropping completions without a gradient leaves the step as it was."""
    return counts.sampled


def per_kept(counts: StepCounts) -> int:
    """Divide by the completions kept: the step keeps its size when many are dropped."""
    return counts.kept


def per_kept_token(counts: StepCounts) -> int:
    """Divide by the tokens kept."""
    return counts.kept_tokens


def per_sampled_length(counts: StepCounts, max_tokens: int) -> int:
    """Divide by completions sampled x the longest completion allowed: long completions are not weighed down (Dr. GRPO)."""
    return counts.sampled * max_tokens
