"""The KL penalty on rewards (`kl.place: reward`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.algorithms.kl import Estimator, k3
from dash_exp.core.types import Completion, Prompt, Sample
from dash_exp.models import adapter
from dash_exp.models.passes import Passes

# Prompts and completions -> penalty and k3 (see `RewardPenalty.__call__`).
Penalty = Callable[[Sequence[Prompt], Sequence[Completion]], tuple[Tensor, Tensor]]


class RewardPenalty:
    """The KL estimator summed over the tokens of each completion. Its baseline is the mean over the rest of the group (see
    `training.scoring`).

    It needs the log-probabilities of *every* completion under the reference, before advantages and filter. So filtering saves
    no forward pass of the reference here. The log-probabilities under the policy are those that the sampler kept.
    """

    def __init__(self, reference: PreTrainedModel, estimator: Estimator, passes: Passes) -> None:
        self.reference = reference
        self.estimator = estimator
        self.passes = passes

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Penalty and k3, both in nats per completion, shape (B,) on the CPU. `prompts[i]` is that of `completions[i]`."""
        penalty_B, k3_B = torch.zeros(len(completions)), torch.zeros(len(completions))
        samples = [Sample(p.ids, c.ids, 0.0, c.logprobs) for p, c in zip(prompts, completions, strict=True)]
        for rows, batch in self.passes.micro_batches(self.reference, samples):
            batch = batch.to(self.reference.device)
            assert batch.old_logprobs_BT is not None, "a KL penalty on rewards needs completions that the policy sampled"
            with adapter.off(self.reference):
                ref_logprobs_BT = self.passes.log_probs(self.reference, batch)
            mask_BT = batch.completion_mask_BT
            penalty_B[rows] = (self.estimator(batch.old_logprobs_BT, ref_logprobs_BT) * mask_BT).sum(-1).cpu()
            k3_B[rows] = (k3(batch.old_logprobs_BT, ref_logprobs_BT) * mask_BT).sum(-1).cpu()
        return penalty_B, k3_B
