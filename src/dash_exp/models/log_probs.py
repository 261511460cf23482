"""Log-probabilities of completion tokens under a model, for padded and packed micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dash_exp.core.types import MicroBatch, Packed
from dash_exp.models.packing import product_dtype

LOGITS = {"cpu": 2**27, "cuda": 2**28}  # most bytes of logits computed at the same time: 128 and 256 MiB
SOFTMAX = {"cpu": 2**22, "cuda": 2**26}  # most bytes of them in a softmax at the same time, in 32 bits: 4 and 64 MiB


def token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """Log-probabilities (nats) of the completion tokens at the sampling temperature. Shape (B, T), 0 where masked.

    Logits are computed for completion tokens only.
    """
    gathering: Any = getattr(model, "token_logprobs", None)  # of a sharded model (see `sharded.shard`)
    return gathering(batch, temperature) if gathering else compute_token_logprobs(model, batch, temperature)


def compute_token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """`token_logprobs` of a model with whole weights. Shape (B, T)."""
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
    targets_BT = batch.input_ids_BL[:, -n_completion:]
    logprobs_N = OfTargets.apply(output.logits[:, :-1].flatten(0, 1), targets_BT.flatten(), temperature)
    return logprobs_N.view_as(targets_BT).masked_fill(mask_BT == 0, 0.0)


def _packed_token_logprobs(model: PreTrainedModel, packed: Packed, mask_BT: Tensor, temperature: float) -> Tensor:
    """The same from one row without padding. Shape (B, T).

    Of more logits than `LOGITS` the rest is computed in pieces, and a second time in the backward pass.
    """
    output = model.base_model(
        input_ids=packed.ids_N[None],
        attention_mask=mask_BT.new_zeros(1, 1, 1, 1),  # four axes: Transformers builds no mask; `packing` has its own
        position_ids=packed.positions_N[None],
        use_cache=False,
        packed=packed,
    )
    head = model.get_output_embeddings()

    def logprobs(hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
        return OfTargets.apply(head(hidden_KD), targets_K, temperature)

    hidden_KD = output.last_hidden_state[0].index_select(0, packed.before_K)
    targets_K = packed.ids_N[-len(hidden_KD) :]
    at_once = rows_of(LOGITS, hidden_KD.device.type, len(head.weight) * product_dtype(head.weight).itemsize)
    (first, *rest) = zip(hidden_KD.split(at_once), targets_K.split(at_once), strict=True)
    again = partial(checkpoint, logprobs, use_reentrant=False, preserve_rng_state=False)
    logprobs_K = torch.cat([logprobs(*first), *(again(*piece) for piece in rest)])
    return logprobs_K.new_zeros(mask_BT.shape).index_put((packed.row_K, packed.column_K), logprobs_K)


class OfTargets(torch.autograd.Function):
    """Log-probabilities (nats, 32 bits) of the targets, shape (K,), from logits (K, V) that nothing else uses.

    They are divided by the temperature. Beside the logits only some rows are in memory, in 32 bits, and the gradient takes the
    place of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, targets_K: Tensor, temperature: float) -> Tensor:
        normalizer_K = torch.empty(len(logits_KV), device=logits_KV.device)
        for rows in slices(logits_KV):
            torch.logsumexp(scaled(logits_KV[rows], temperature), dim=1, out=normalizer_K[rows])
        ctx.save_for_backward(logits_KV, targets_K, normalizer_K)
        ctx.temperature = temperature
        of_target_K = logits_KV.gather(1, targets_K[:, None])[:, 0]
        return scaled(of_target_K, temperature) - normalizer_K

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        logits_KV, targets_K, normalizer_K = ctx.saved_tensors
        gradient_K1 = scaled(gradient[0], ctx.temperature)[:, None]
        for rows in slices(logits_KV):
            softmax_RV = scaled(logits_KV[rows], ctx.temperature).sub(normalizer_K[rows, None]).exp_()
            softmax_RV.mul_(-gradient_K1[rows]).scatter_add_(1, targets_K[rows, None], gradient_K1[rows])
            logits_KV[rows] = softmax_RV
        return logits_KV, None, None


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Divided by the temperature, in 32 bits."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def slices(logits_KV: Tensor) -> Iterator[slice]:
    """The rows, as many at a time as `SOFTMAX` has place for."""
    at_once = rows_of(SOFTMAX, logits_KV.device.type, logits_KV.shape[1] * torch.float32.itemsize)
    return (slice(start, start + at_once) for start in range(0, len(logits_KV), at_once))


def rows_of(most: Mapping[str, int], device: str, row: int) -> int:
    """How many rows of so many bytes are at most `most` on this kind of device; at least one."""
    return max(1, most.get(device, most["cpu"]) // row)


def positions(attention_mask_BL: Tensor) -> Tensor:
    """Position of each token in its own sequence, shape (B, L); 0 for padding before it. `[0,0,1,1] -> [0,0,0,1]`."""
    return (attention_mask_BL.cumsum(dim=-1) - 1).clamp(min=0)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Mixed precision, the same for sampling and training, so that both compute the same log-probabilities."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
