"""One decoding step for models with the structure of Llama.

It does the same operations as Transformers' `forward`, which takes a quarter longer with few rows, because it handles masks,
outputs and arguments of all kinds of models at every token. `tests/models/test_packing.py` compares both with the
log-probabilities of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from dash_exp.models import packing
from dash_exp.sampling.cache import SharedPrompts

KNOWN = {LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM}


def known(policy: PreTrainedModel) -> bool:
    """Whether `next_logits` supports this policy, which has no sliding windows.

    Under `fsdp` the class differs, so the policy uses its `forward`.
    """
    return type(policy) in KNOWN and packing.enabled(policy) and not packing.windowed(policy)


def next_logits(
    policy: PreTrainedModel,
    tokens_B: Tensor,
    position_B1: Tensor,
    cache: Cache,
    mask_B11L: Tensor | None = None,
    prompts: SharedPrompts | None = None,
) -> Tensor:
    """Logits (B, V) after one more token per row; its keys and values are added to the cache. No mask with `prompts`."""
    base: Any = policy.base_model
    rows = len(tokens_B)
    hidden_BD = base.embed_tokens(tokens_B)
    cos_B1S, sin_B1S = base.rotary_emb(hidden_BD, position_B1)
    # In the type of the products, so that autocast does not cast it for each of them.
    dtype = packing.product_dtype(hidden_BD)
    for number, layer in enumerate(base.layers):
        attention = layer.self_attn
        normed_BD = layer.input_layernorm(hidden_BD).to(dtype)
        query_BHS, key_BHS, value_BHS = (
            project(normed_BD).view(rows, -1, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query_BHS, key_BHS = attention.q_norm(query_BHS), attention.k_norm(key_BHS)
        query_BHS, key_BHS = _rotated(query_BHS, cos_B1S, sin_B1S), _rotated(key_BHS, cos_B1S, sin_B1S)
        keys, values = cache.update(key_BHS[:, :, None], value_BHS[:, :, None], number)
        out, _ = packing.attention(
            attention, query_BHS[:, :, None], keys, values, mask_B11L, scaling=attention.scaling, prompts=prompts
        )
        hidden_BD = hidden_BD + attention.o_proj(out.reshape(rows, -1))
        hidden_BD = hidden_BD + layer.mlp(layer.post_attention_layernorm(hidden_BD).to(dtype))
    return policy.get_output_embeddings()(base.norm(hidden_BD))


def _rotated(states_BHS: Tensor, cos_B1S: Tensor, sin_B1S: Tensor) -> Tensor:
    """Rotary position embedding (RoFormer, Su et al. 2021), with the two halves of a head as the two axes."""
    first, second = states_BHS.chunk(2, dim=-1)
    return states_BHS * cos_B1S + torch.cat([-second, first], dim=-1) * sin_B1S
