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

    Nothing is done for float32, which is computed without autocast, nor for the parts of weights that FSDP has divided.
    """
    places = _copies(model, dtype)
    try:
        for layer, name, _, copy in places:
            layer._parameters[name] = copy
        yield
    finally:  # also where a signal came in the middle of the loop above: copies must never be trained or saved
        for layer, name, weight, _ in places:
            layer._parameters[name] = weight


def keep_cast(model: nn.Module, dtype: torch.dtype) -> None:
    """The same for good, of a model that is never trained nor saved: a reference."""
    if dtype == torch.float32:
        return
    for layer, name, weight in _places(model, dtype):  # one after the other: what is replaced is freed
        layer._parameters[name] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)


def _copies(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]:
    """Layer, name, weight and its copy; weights that layers share are copied once."""
    places = [] if dtype == torch.float32 else list(_places(model, dtype))
    weights = {id(weight): weight for _, _, weight in places}
    copies = {key: nn.Parameter(weight.detach().to(dtype), requires_grad=False) for key, weight in weights.items()}
    return [(layer, name, weight, copies[id(weight)]) for layer, name, weight in places]


def _places(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            for name, weight in layer.named_parameters(recurse=False):
                if weight.is_floating_point() and weight.dtype != dtype and not isinstance(weight, DTensor):
                    yield layer, name, weight
