"""What the work of an outer step needs of a dense model: operations, and bytes that have to be moved at least.

Counted from the lengths of prompts and completions, not from how it is done: without padding, each prompt once for its group.
An operation is a multiplication or an addition in a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dash_exp.core.errors import UserError

CHOOSE = "Choose a dense model with full attention, such as Qwen2 or Llama"


@dataclass(frozen=True)
class Size:
    """What of a model its operations and bytes follow from. `attention_width` is heads x head size, `kv_width` that of keys."""

    linear_weights: int  # of all linear layers, without the LM head
    head_weights: int
    layers: int
    attention_width: int
    kv_width: int


@dataclass(frozen=True)
class Group:
    """Lengths in tokens of a prompt and of the completions that share it."""

    prompt: int
    completions: tuple[int, ...]


def linear_layers(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """All but the LM head."""
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]


def size_of(model: PreTrainedModel) -> Size:
    """Counts the weights of every `nn.Linear`. Raises UserError for a model with other matrices or with attention windows."""
    config, head = model.config, model.get_output_embeddings()
    linears = linear_layers(model)
    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    known = {id(m.weight) for m in [*linears, *embeddings, head]}
    if others := [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in known]:
        named = ", ".join(others[:3])
        raise UserError("model", f"has weights of no linear layer, whose operations are not known: {named}", CHOOSE)
    if getattr(config, "sliding_window", None):
        raise UserError("model", "has attention windows (sliding_window), which are not counted", CHOOSE)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Size(
        linear_weights=sum(m.weight.numel() for m in linears),
        head_weights=head.weight.numel(),
        layers=config.num_hidden_layers,
        attention_width=heads * head_size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
    )


def forward_flops(size: Size, group: Group) -> int:
    """Operations of a forward pass over a group whose prompt of C tokens is read once; sampling needs as many as scoring.

        N = C + sum_g (T_g - 1)      tokens that are read: the last of a completion has nothing to predict
        H = 1 + sum_g (T_g - 1)      positions with logits: the prompt's last one serves the whole group
        K = C(C + 1)/2 + sum_g [(T_g - 1) C + (T_g - 1) T_g/2]      keys that are looked at: a token's own and those before

        2 x linear weights x N + 2 x head weights x H + 4 x attention width x layers x K

    Backward needs twice as many. No completion, no operation.
    """
    if not group.completions:
        return 0
    prompt, further = group.prompt, [n - 1 for n in group.completions]
    read, with_logits = prompt + sum(further), 1 + sum(further)
    keys = prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in further)
    return 2 * size.linear_weights * read + 2 * size.head_weights * with_logits + 4 * size.attention_width * size.layers * keys


def update_flops(size: Size, groups: Sequence[Group], epochs: int = 1, reference: bool = False) -> int:
    """Forward, backward (twice a forward) and, where a KL stands in the loss, the reference's forward; `epochs` times over."""
    return epochs * (4 if reference else 3) * sum(forward_flops(size, g) for g in groups)


def sampling_bytes(size: Size, call: Sequence[Group], bytes_per_number: int) -> int:
    """Bytes that one sampling call moves at least, all completions decoded side by side.

    Weights are read once per decoding step, T steps for the longest completion. Keys and values of a token are written once
    and, at each further token, read: those of the prompt once for the group (for as long as its longest completion goes on),
    those of a completion by itself.
    """
    steps = max((max(g.completions) for g in call if g.completions), default=0)
    moved = 0
    for group in call:
        further = [n - 1 for n in group.completions]
        written = group.prompt + sum(further)
        read = group.prompt * max(further, default=0) + sum(n * (n + 1) // 2 for n in further)
        moved += written + read
    per_token = 2 * size.kv_width * size.layers
    return bytes_per_number * (steps * (size.linear_weights + size.head_weights) + per_token * moved)
