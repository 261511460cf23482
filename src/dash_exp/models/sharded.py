"""A sharded model: each rank has a part of every weight, with its gradient and optimizer state (FSDP2, `fully_shard`).

A layer's weights are gathered for its forward and its backward pass, so all ranks must run the same number of passes. Weights
for a checkpoint or a sampling server are gathered by `whole`, which every rank must call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from dash_exp.models.adapter import trained
from dash_exp.models.log_probs import compute_token_logprobs


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Keep only this rank's part of the model, in place. `mesh`: of the ranks, in one dimension.

    Each layer is gathered by itself, everything outside the layers together. Gradients are summed over ranks. FSDP gathers only
    for methods that it knows, and `log_probs.token_logprobs` does not call `forward`, so it is registered as a method.
    """
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.token_logprobs = MethodType(compute_token_logprobs, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "token_logprobs")
    for module in _parts(model):
        module.set_force_sum_reduction_for_comms(True)  # gloo can only sum
        module.set_gradient_divide_factor(1.0)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on the model."""
    return isinstance(model, FSDPModule)


def weights(model: PreTrainedModel, keep: bool = True, copy: bool = False) -> dict[str, Any]:
    """The trained part of the state dict as whole tensors; for a sharded model in CPU memory, with `keep` and `copy` as in
    `whole`.
    """
    return whole(trained(model, keep_vars=True), keep, copy) if copy or is_sharded(model) else trained(model)


def whole(state: Any, keep: bool = True, copy: bool = False) -> Any:
    """A copy of nested dicts and lists in which sharded tensors are whole, in CPU memory. Every rank must call it.

    Without `keep`, for ranks that do not need them, the tensors are gathered all the same, and None is put in their place. With
    `copy` tensors that are not sharded are copied into CPU memory as well, and nothing in the result changes with the model.
    """
    found: dict[Any, Tensor | None] = {}  # by parameter, or by the place in memory: tied weights stay tied

    def gather(value: Any) -> Any:
        if isinstance(value, DTensor):
            if id(value) not in found:
                with torch.no_grad():
                    tensor = value.full_tensor()
                found[id(value)] = tensor.cpu() if keep else None
            return found[id(value)]
        if isinstance(value, Tensor) and copy:
            place = (value.data_ptr(), value.dtype, value.shape)
            if place not in found:
                found[place] = value.detach().to("cpu", copy=True) if keep else None
            return found[place]
        if isinstance(value, Mapping):
            return {key: gather(each) for key, each in value.items()}
        return [gather(each) for each in value] if isinstance(value, list) else value

    return gather(state)


def parts(state: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """What this rank's optimizer keeps of a parameter, from whole tensors, divided as the parameter is."""
    if not isinstance(like, DTensor):
        return dict(state)
    mesh, placements = like.device_mesh, like.placements
    return {
        name: distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)
        if isinstance(value, Tensor) and value.shape == like.shape
        else value
        for name, value in state.items()
    }


# --- what one rank has, without an exchange ----------------------------------------------------------------------------


def rows_of(count: int, index: int, size: int) -> slice:
    """Of so many rows those that rank `index` of `size` has: FSDP divides the first dimension as `torch.chunk` does."""
    each = -(-count // size)
    return slice(min(index * each, count), min((index + 1) * each, count))


def own_rows(tensor: Tensor, index: int, size: int) -> Tensor:
    """The rows of a tensor that this rank has, not copied: of a sharded tensor, or of a whole one. A single number is a row.

    Of a sharded tensor that is not divided by rows (a factor that an optimizer keeps) the whole is gathered: every rank must
    call it then.
    """
    with torch.no_grad():
        if isinstance(tensor, DTensor) and tuple(tensor.placements) == (Shard(0),):
            return tensor.to_local().detach()
        whole = torch.atleast_1d(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach())
        return whole[rows_of(len(whole), index, size)]


def from_rows(rows: Tensor, like: DTensor) -> DTensor:
    """The sharded tensor of which each rank has its `rows`, divided as `like` is."""
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside the block this rank holds the whole model: for forward passes without a gradient, any number of them."""
    for module in _parts(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in _parts(model):
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def _parts(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))
