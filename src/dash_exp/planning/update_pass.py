"""The forward and backward pass of an update, as `PolicyModule` does them, on models without contents."""

from __future__ import annotations

import torch
from torch import Tensor

from dash_exp.algorithms.kl import k3
from dash_exp.core.types import MicroBatch, Sample
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import autocast, token_logprobs
from dash_exp.planning.empty_models import Models
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import Load

CPU = torch.device("cpu")


def update(models: Models, load: Load, live: LiveBytes) -> None:
    """The largest micro-batch through forward and backward pass. Gradients stay where the optimizer expects them."""

    def has_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if load.master_weights:  # they hold the gradient, in 32 bits
            parameter.in_32_bits, parameter.grad = parameter.grad.float(), None  # type: ignore[attr-defined]
        live.relabel(parameter.in_32_bits if load.master_weights else parameter.grad, "gradients")  # type: ignore

    hooks = [p.register_post_accumulate_grad_hook(has_gradient) for p in models.trained]
    batch = largest_batch(load).to(CPU)
    with autocast(CPU, load.compute_dtype):
        logprobs_BT = token_logprobs(models.policy, batch, 1.0)
        loss_BT = logprobs_BT * batch.advantages_B[:, None]
        if load.reference:
            with torch.no_grad():
                ref_logprobs_BT = token_logprobs(models.reference or models.policy, batch, 1.0)
            loss_BT = loss_BT + k3(logprobs_BT, ref_logprobs_BT)
        loss = (loss_BT * batch.completion_mask_BT).sum()
    loss.backward()
    for hook in hooks:
        hook.remove()


def largest_batch(load: Load) -> MicroBatch:
    """One completion as long as allowed, the others as long as the token budget lets them be (see `BackwardPass`)."""
    size = load.update
    rest = max(1, (size.tokens - size.longest) // max(1, size.completions - 1))
    samples = []
    for i in range(size.completions):
        length = min(size.longest if i == 0 else rest, size.longest)
        prompt = i * size.prompts // size.completions
        samples.append(Sample((prompt,) * size.prompt_tokens, (1,) * length, 1.0, (0.0,) * length))
    return collate(samples, 0, packed=load.packed)
