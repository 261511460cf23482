"""The KL penalty on rewards (`kl.place: reward`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.algorithms.kl import Estimator, k3
from dash_exp.core.types import Completion, Prompt, Sample
from dash_exp.models import adapter, packing
from dash_exp.models.batch import micro_batches
from dash_exp.models.log_probs import autocast, token_logprobs

# Prompts and completions -> penalty and k3 (see `RewardPenalty.__call__`).
Penalty = Callable[[Sequence[Prompt], Sequence[Completion]], tuple[Tensor, Tensor]]


class RewardPenalty:
    """The estimator summed over the tokens of each completion, for `place: reward`. Its baseline is the mean of the others of
    the group (see `rollout`).

    It needs the reference's log-probabilities of *every* completion before advantages and filter, so filtering saves no forward
    pass of the reference here. The policy's log-probabilities are those that the sampler kept.
    """

    def __init__(
        self,
        reference: PreTrainedModel,
        estimator: Estimator,
        micro_tokens: int,
        temperature: float,
        pad_id: int,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.reference = reference
        self.estimator = estimator
        self.micro_tokens = micro_tokens
        self.temperature = temperature
        self.pad_id = pad_id
        self.compute_dtype = compute_dtype

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Penalty and k3, both in nats per completion, shape (B,) on the CPU. `prompts[i]` is that of `completions[i]`."""
        penalty_B, k3_B = torch.zeros(len(completions)), torch.zeros(len(completions))
        device = self.reference.device
        samples = [Sample(p.ids, c.ids, 0.0, c.logprobs) for p, c in zip(prompts, completions, strict=True)]
        for rows, batch in micro_batches(samples, self.micro_tokens, self.pad_id, packing.enabled(self.reference)):
            batch = batch.to(device)
            assert batch.old_logprobs_BT is not None, "a KL penalty on rewards needs completions that the policy sampled"
            with adapter.off(self.reference), autocast(device, self.compute_dtype):
                ref_logprobs_BT = token_logprobs(self.reference, batch, self.temperature)
            mask_BT = batch.completion_mask_BT
            penalty_B[rows] = (self.estimator(batch.old_logprobs_BT, ref_logprobs_BT) * mask_BT).sum(-1).cpu()
            k3_B[rows] = (k3(batch.old_logprobs_BT, ref_logprobs_BT) * mask_BT).sum(-1).cpu()
        return penalty_B, k3_B
