import math

import pytest
import torch

from dash_exp.algorithms import kl, kl_penalty
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models import loading
from dash_exp.models.passes import Passes


def test_the_penalty_on_rewards_written_out(policy):
    """Row by row without padding: the sum of log(pi/ref) over the completion, pi as the sampler recorded it."""
    reference = loading.frozen_copy(policy)
    rows = [((5, 6, 7), (8, 9), (-0.5, -1.5)), ((10,), (11, 12, 13, 1), (-0.1, -0.2, -0.3, -0.4))]
    prompts = [Prompt(Problem(str(i), "?", "1"), prompt) for i, (prompt, _, _) in enumerate(rows)]
    completions = [Completion(ids, logprobs, False) for _, ids, logprobs in rows]
    penalty_B, k3_B = kl_penalty.RewardPenalty(reference, kl.k1, Passes(micro_tokens=6, pad_id=0))(prompts, completions)
    for i, (prompt, ids, logprobs) in enumerate(rows):
        ref = torch.log_softmax(reference(torch.tensor([prompt + ids])).logits[0], -1)
        ref = [ref[len(prompt) + t - 1, token].item() for t, token in enumerate(ids)]
        assert penalty_B[i].item() == pytest.approx(sum(p - r for p, r in zip(logprobs, ref, strict=True)), rel=1e-5)
        k3 = sum(math.exp(r - p) - (r - p) - 1 for p, r in zip(logprobs, ref, strict=True))
        assert k3_B[i].item() == pytest.approx(k3, rel=1e-4)
