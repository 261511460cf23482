"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) of Llama-like models on CPUs, a few rows at a time.

Transformers computes it in six operations, each over all tokens, and autograd keeps three arrays as large as the input. On CPUs
memory is the limit. Here the rows of an operation stay in the cache, and the input and one number per token are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

KNOWN = {LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm}  # all compute the same
BYTES = 2**19  # of the input at a time


def enable(model: PreTrainedModel) -> None:
    """Let the norms of a model compute so, where they are known."""
    for module in model.modules():
        if type(module) in KNOWN:
            module.__class__ = Norm


class Norm(LlamaRMSNorm):
    """In place of a norm of `KNOWN`: of 32-bit numbers on a CPU; else as Transformers."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.device.type != "cpu" or {hidden_states.dtype, self.weight.dtype} != {torch.float32}:
            return super().forward(hidden_states)
        out: Tensor = OfRows.apply(hidden_states, self.weight, self.variance_epsilon)
        return out


class OfRows(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last axis, of any shape (..., D). It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        states_ND = states.reshape(-1, states.shape[-1])
        out_ND = torch.empty_like(states_ND)
        scale_N1 = states_ND.new_empty(len(states_ND), 1)
        for rows in _slices(states_ND):
            torch.rsqrt(states_ND[rows].pow(2).mean(-1, keepdim=True).add_(eps), out=scale_N1[rows])
            torch.mul(states_ND[rows], scale_N1[rows], out=out_ND[rows]).mul_(weight_D)
        ctx.save_for_backward(states_ND, weight_D, scale_N1)
        return out_ND.view_as(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        states_ND, weight_D, scale_N1 = ctx.saved_tensors
        gradient_ND = gradient.reshape(states_ND.shape)
        of_states_ND = torch.empty_like(states_ND)
        of_weight_D = torch.zeros_like(weight_D) if ctx.needs_input_grad[1] else None
        for rows in _slices(states_ND):
            normed_RD = states_ND[rows] * scale_N1[rows]
            product_RD = gradient_ND[rows] * normed_RD
            if of_weight_D is not None:
                of_weight_D += product_RD.sum(0)
            along_R1 = product_RD.mul_(weight_D).mean(-1, keepdim=True)
            part_RD = torch.mul(gradient_ND[rows], weight_D, out=of_states_ND[rows])
            part_RD.sub_(normed_RD.mul_(along_R1)).mul_(scale_N1[rows])
        return of_states_ND.view_as(gradient), of_weight_D, None


def _slices(states_ND: Tensor) -> Iterator[slice]:
    at_once = max(1, BYTES // (states_ND.shape[1] * states_ND.itemsize))
    return (slice(start, start + at_once) for start in range(0, len(states_ND), at_once))
