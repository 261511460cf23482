"""How completions go through a model: in micro-batches within a token budget, in one numeric type, at one temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.core.types import MicroBatch, Sample
from dash_exp.models import packing
from dash_exp.models.batch import micro_batches
from dash_exp.models.log_probs import autocast, token_logprobs


@dataclass(frozen=True)
class Passes:
    """`micro_tokens`: the most tokens of one pass (see `batch.cut`). `pad_id` fills padded places. `temperature`: that of
    sampling, by which logits are divided. `compute_dtype`: the type of matrix products; float32 turns autocast off.
    """

    micro_tokens: int
    pad_id: int
    temperature: float = 1.0
    compute_dtype: torch.dtype = torch.float32

    def micro_batches(self, model: PreTrainedModel, samples: Sequence[Sample]) -> Iterator[tuple[list[int], MicroBatch]]:
        """The samples in CPU memory, one micro-batch at a time as `model` reads them, each with the indices of its samples."""
        yield from micro_batches(samples, self.micro_tokens, self.pad_id, packing.enabled(model))

    def log_probs(self, model: PreTrainedModel, batch: MicroBatch) -> Tensor:
        """Log-probabilities (nats) of the completion tokens, shape (B, T), 0 where masked. `batch` is on the model's device."""
        with autocast(model.device, self.compute_dtype):
            return token_logprobs(model, batch, self.temperature)
