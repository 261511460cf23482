"""Policy, reference and optimizer without contents, built as a run builds them. Call these under torch's `FakeTensorMode`."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dash_exp.models import casting, packing
from dash_exp.planning.adapters import add_adapters
from dash_exp.planning.live_bytes import LiveBytes
from dash_exp.planning.load import Load


class Models(NamedTuple):
    """`trained`: the parameters that are trained. `optimizer`: its state, which must live as long as the policy."""

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    trained: list[nn.Parameter]
    optimizer: list[torch.Tensor]


def models_of(load: Load, live: LiveBytes) -> Models:
    """Policy in training mode, reference where it has weights of its own, and the state of the optimizer."""
    with live.creating("weights"):
        policy = empty_policy(load)
        trained = list(policy.parameters())
        if load.adapters:
            policy.requires_grad_(False)
            trained = add_adapters(policy, load.adapters.rank, load.adapters.targets)
        if load.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if load.adapters:
                policy.enable_input_require_grads()
    reference = None
    if load.reference_copy:
        with live.creating("reference"):
            reference = empty_policy(load).eval().requires_grad_(False)
            casting.keep_cast(reference, load.reference_dtype)
    with live.creating("optimizer"):
        optimizer = [torch.empty(p.numel() * load.optimizer_bytes, dtype=torch.uint8) for p in trained]
    return Models(policy.train(), reference, trained, optimizer)


def empty_policy(load: Load) -> PreTrainedModel:
    """The model without contents, with the attention that `loading.load_policy` gives it."""
    model = AutoModelForCausalLM.from_config(load.config, dtype=load.dtype, attn_implementation=load.attention)
    if packing.possible(model):
        model.set_attn_implementation(packing.ATTENTION)
    return model


def reads_packed(config: PreTrainedConfig, attention: str) -> bool:
    """Whether the model is expected to read packed micro-batches. Loading its weights then checks whether it does."""
    with torch.device("meta"):
        return packing.possible(AutoModelForCausalLM.from_config(with_layers(config, 1), attn_implementation=attention))


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of the configuration with another number of layers."""
    other = copy.deepcopy(config)
    other.num_hidden_layers = layers
    if getattr(other, "layer_types", None):
        other.layer_types = other.layer_types[:layers]
    return other


def parameter_count(module: nn.Module) -> int:
    """How many numbers the parameters have; tied ones count once."""
    return sum(p.numel() for p in module.parameters())
