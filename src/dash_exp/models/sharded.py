"""A model of which each rank holds a part of every weight, with its gradient and its optimizer state (FSDP2, `fully_shard`).

A layer's weights are gathered around its forward and its backward pass, so all ranks must make the same number of passes.
Weights that leave the ranks, for a checkpoint or a sampling server, are gathered by `whole`, which every rank must call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from dash_exp.models.adapter import trained
from dash_exp.models.log_probs import compute_token_logprobs


def shard(model: PreTrainedModel, ranks: int, device: str) -> None:
    """Leave this rank its part of the model, in place. Each layer is gathered by itself, what is around them together.

    `ops.token_logprobs` does not go through `forward`, so that FSDP is told of it. Gradients are summed over ranks.
    """
    mesh = init_device_mesh(device, (ranks,))
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.token_logprobs = MethodType(compute_token_logprobs, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "token_logprobs")
    for module in _parts(model):
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        module.set_gradient_divide_factor(1.0)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def weights(model: PreTrainedModel, keep: bool = True) -> dict[str, Any]:
    """What is trained of the state dict, as whole tensors, of a sharded model in CPU memory. `keep`: see `whole`."""
    return whole(trained(model, keep_vars=True), keep) if is_sharded(model) else trained(model)


def whole(state: Any, keep: bool = True) -> Any:
    """Any nesting of dicts and lists, with whole tensors in CPU memory where there were parts of them.

    Without `keep`, as on ranks that do not need them, they are gathered with the others' and None takes their place.
    """
    found: dict[int, Tensor | None] = {}  # by parameter: tied weights stay tied

    def gather(value: Any) -> Any:
        if isinstance(value, DTensor):
            if id(value) not in found:
                with torch.no_grad():
                    tensor = value.full_tensor()
                found[id(value)] = tensor.cpu() if keep else None
            return found[id(value)]
        if isinstance(value, Mapping):
            return {key: gather(each) for key, each in value.items()}
        return [gather(each) for each in value] if isinstance(value, list) else value

    return gather(state)


def part(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor, cut as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts_of_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer, made whole by `whole`, as this rank's optimizer takes it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = {
        i: {name: part(value, parameters[i]) if isinstance(value, Tensor) else value for name, value in of_one.items()}
        for i, of_one in state["state"].items()
    }
    return {**state, "state": values}


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Around forward passes without a gradient, as many as this rank likes: it holds the whole model meanwhile."""
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
