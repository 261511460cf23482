"""LoRA adapters on a model without contents, as PEFT adds them: which layers get one, and what they compute.

PEFT itself is not used: a plan needs no more than the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dash_exp.core.errors import UserError
from dash_exp.models.adapter import LINEAR, linear_names

HOW = "Write all-linear, or names as in [q_proj,v_proj]"


def is_target(layer: str, targets: str | Sequence[str]) -> bool:
    """Whether PEFT gives the layer of this name an adapter.

    A string is `all-linear` or a regular expression; a list holds ends of names. UserError for a broken regular expression.
    """
    if not isinstance(targets, str):
        return any(layer == target or layer.endswith(f".{target}") for target in targets)
    try:
        return targets.lower() == "all-linear" or re.fullmatch(targets, layer) is not None
    except re.error as error:
        raise UserError(f"model.lora.target_modules={targets}", f"is not a regular expression ({error})", HOW) from error


def target_layers(policy: PreTrainedModel, targets: str | Sequence[str]) -> list[Any]:
    """The linear layers that get an adapter, without the LM head. UserError where there are none."""
    linear = [(name, layer) for name, layer in policy.named_modules() if isinstance(layer, LINEAR)]
    found = [layer for name, layer in linear if layer is not policy.get_output_embeddings() and is_target(name, targets)]
    if not found:
        shown = targets if isinstance(targets, str) else f"[{','.join(targets)}]"
        instead = f"Write [{','.join(linear_names(policy))}], or some of them"
        raise UserError(f"model.lora.target_modules={shown}", "matches no linear layer", instead)
    return found


def add_adapters(policy: PreTrainedModel, rank: int, targets: str | Sequence[str]) -> list[nn.Parameter]:
    """Give each target layer its two thin matrices, in 32 bits as PEFT does. Returns the matrices."""
    found: list[nn.Parameter] = []
    for layer in target_layers(policy, targets):
        n_out, n_in = reversed(layer.weight.shape) if isinstance(layer, Conv1D) else layer.weight.shape
        down = nn.Parameter(torch.empty(rank, n_in))
        up = nn.Parameter(torch.empty(n_out, rank))

        def add(layer: nn.Module, inputs: Any, output: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
            small = nn.functional.linear(inputs[0].to(down.dtype), down)
            return output + nn.functional.linear(small, up).to(output.dtype)

        layer.register_forward_hook(add)
        found += [down, up]
    return found
