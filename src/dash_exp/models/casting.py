"""Weights of linear layers in the type that autocast computes in.

Autocast casts a weight each time its layer runs, and keeps the result only where the weight gets a gradient. In sampling all
weights would be cast for every token. The numbers are the same in both ways: everything else stays as autocast has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

LAYERS = (nn.Linear, Conv1D)  # autocast computes their products


@contextlib.contextmanager
def cast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the linear layers of `model` have copies of their weights in `dtype`, without gradients.

    Nothing is done for float32, which is computed without autocast, nor for sharded weights, which are gathered for each pass.
    """
    before = _replace(model, dtype)
    try:
        yield
    finally:
        for layer, name, weight in before:
            layer._parameters[name] = weight


def keep_cast(model: nn.Module, dtype: torch.dtype) -> None:
    """The same for good, of a model that is never trained nor saved: a reference."""
    _replace(model, dtype)


def _replace(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Returns what was there: layer, name, weight."""
    before = [] if dtype == torch.float32 else list(_places(model, dtype))
    copies: dict[int, nn.Parameter] = {}  # weights that layers share are copied once
    for layer, name, weight in before:
        if id(weight) not in copies:
            copies[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        layer._parameters[name] = copies[id(weight)]
    return before


def _places(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            for name, weight in layer.named_parameters(recurse=False):
                if weight.is_floating_point() and weight.dtype != dtype and not isinstance(weight, DTensor):
                    yield layer, name, weight
