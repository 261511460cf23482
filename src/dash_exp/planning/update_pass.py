"""The passes of an update, as `PolicyModule` does them, on models without contents; and that of a KL in the reward."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dash_exp.algorithms.kl import k3
from dash_exp.core.types import MicroBatch, Sample
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import autocast, token_logprobs
from dash_exp.planning.empty_models import Models
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import BackwardPass, Load

CPU = torch.device("cpu")


def update(models: Models, load: Load, live: LiveBytes) -> None:
    """The largest micro-batch through forward and backward pass. Gradients stay where the optimizer expects them."""
    assert load.update is not None
    several = load.update.several
    if several:
        with live.creating("gradients"):
            gradients_of_earlier_passes(models, load)

    def has_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if several:  # added to what is there
            parameter.grad = None if load.master_weights else parameter.grad
            return
        if load.master_weights:  # they hold the gradient, in 32 bits
            parameter.in_32_bits, parameter.grad = parameter.grad.float(), None  # type: ignore[attr-defined]
        live.relabel(parameter.in_32_bits if load.master_weights else parameter.grad, "gradients")  # type: ignore

    hooks = [p.register_post_accumulate_grad_hook(has_gradient) for p in models.trained]
    batch = largest_batch(load.update, load.packed)
    with autocast(CPU, load.compute_dtype):  # what it casts is kept for the backward pass only
        logprobs_BT = token_logprobs(models.policy, batch, 1.0)
    loss_BT = logprobs_BT * batch.advantages_B[:, None]
    if load.reference and not load.reference_in_reward:
        loss_BT = loss_BT + k3(logprobs_BT, reference_logprobs(models, load, batch))
    (loss_BT * batch.completion_mask_BT).sum().backward()
    for hook in hooks:
        hook.remove()


def gradients_of_earlier_passes(models: Models, load: Load) -> None:
    """The gradients to which a pass adds its own, of all trained weights."""
    for parameter in models.trained:
        if load.master_weights:
            parameter.in_32_bits = torch.zeros_like(parameter, dtype=torch.float32)  # type: ignore[attr-defined]
        else:
            parameter.grad = torch.zeros_like(parameter)


def reference_logprobs(models: Models, load: Load, batch: MicroBatch) -> Tensor:
    """The log-probabilities under the reference, shape (B, T), without a gradient."""
    with torch.no_grad(), autocast(CPU, load.compute_dtype):
        return token_logprobs(models.reference or models.policy, batch, 1.0)


def largest_batch(size: BackwardPass, packed: bool) -> MicroBatch:
    """One completion as long as allowed, the others as long as the token budget lets them be."""
    rest = max(1, (size.tokens - size.longest) // max(1, size.completions - 1))
    samples = []
    for i in range(size.completions):
        length = min(size.longest if i == 0 else rest, size.longest)
        prompt = i * size.prompts // size.completions
        ids, logprobs = np.ones(length, np.int32), np.zeros(length, np.float32)
        samples.append(Sample((prompt,) * size.prompt_tokens, ids, 1.0, logprobs))
    return collate(samples, 0, packed).to(CPU)
