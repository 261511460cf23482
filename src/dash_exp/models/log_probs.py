"""Log-probabilities of the sampled tokens under a model, of padded and of packed micro-batches."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dash_exp.core.types import MicroBatch, Packed

LOGITS = {"cpu": 2**24, "cuda": 2**26}  # most that are in memory at once: 64 and 256 MiB, and as much again for each copy


def token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """Log-probabilities (nats) of the completion tokens at the sampling temperature. Shape (B, T), 0 where masked.

    Logits are computed for completion tokens only.
    """
    gathering: Any = getattr(model, "token_logprobs", None)  # of a model that is `sharded`
    return gathering(batch, temperature) if gathering else compute_token_logprobs(model, batch, temperature)


def compute_token_logprobs(model: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """`token_logprobs` of a model whose weights are at hand."""
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
    """The same from a row without padding. The logits of a large vocabulary are made some tokens at a time, and twice."""
    output = model.base_model(
        input_ids=packed.ids_N[None],
        attention_mask=mask_BT.new_zeros(1, 1, 1, 1),  # four axes: Transformers makes no mask, and `packing` has its own
        position_ids=packed.positions_N[None],
        use_cache=False,
        packed=packed,
    )
    head = model.get_output_embeddings()

    def logprobs(hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
        logits_KV = head(hidden_KD).float()
        return -F.cross_entropy(logits_KV if temperature == 1 else logits_KV / temperature, targets_K, reduction="none")

    hidden_KD = output.last_hidden_state[0].index_select(0, packed.before_K)
    targets_K = packed.ids_N[-len(hidden_KD) :]
    at_once = max(1, LOGITS.get(targets_K.device.type, LOGITS["cpu"]) // len(head.weight))
    if len(hidden_KD) <= at_once:
        logprobs_K = logprobs(hidden_KD, targets_K)
    else:
        pieces = zip(hidden_KD.split(at_once), targets_K.split(at_once), strict=True)
        in_piece = partial(checkpoint, logprobs, use_reentrant=False, preserve_rng_state=False)
        logprobs_K = torch.cat([in_piece(*piece) for piece in pieces])
    return logprobs_K.new_zeros(mask_BT.shape).index_put((packed.row_K, packed.column_K), logprobs_K)


def positions(attention_mask_BL: Tensor) -> Tensor:
    """Position of each token in its own sequence; padding in front counts as 0. `[0,0,1,1] -> [0,0,0,1]`."""
    return (attention_mask_BL.cumsum(dim=-1) - 1).clamp(min=0)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for sampling and training alike, so that both sides compute the same log-probabilities."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
