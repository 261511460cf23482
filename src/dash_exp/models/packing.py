"""Packing: a micro-batch without padding, in which the prompt of a group is computed once.

All tokens are in one row, first the prompts, then the completions:

    prompts a and b, completions a1 a2 b1    [a a a | b b | a1 a1 | a2 a2 a2 | b1 b1]
    positions                                [0 1 2 | 0 1 |  3  4 |  3  4  5 |  2  3]

Most layers process each token by itself and need no change. Attention arranges queries and keys in rows, one for each prompt
and one for each completion after its prompt; only there is padding. The gradient of a prompt is the sum over its completions,
as if each had its own copy of the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dash_exp.core.errors import UserError
from dash_exp.core.types import Packed, TokenIds
from dash_exp.core.words import error_line

ATTENTION = "packed_sdpa"  # the name of `attention` in Transformers
VARLEN = "packed_varlen"  # the same, and packed rows by torch's flash attention of sequences of any length: no padding, no mask
# model.attn_implementation, and what Transformers is asked for where packed rows have attention by `VARLEN`
OF_SETTING = {"varlen": "sdpa", "flash_attention_2": "sdpa"}
# Devices on which attention computes in 32 bits under autocast: CPUs are slower in 16 bits, in the backward pass four times.
IN_32_BITS = {"cpu"}
FLASH_DTYPES = {torch.float16, torch.bfloat16}  # in which torch has flash attention


def possible(model: PreTrainedModel) -> bool:
    """Whether the model's attention is `sdpa` through Transformers' interface, over the whole context or a sliding window,
    without a cap on scores or logits.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    known = kinds <= {"full_attention", "sliding_attention"}
    caps = [getattr(config, f"{of}_logit_softcapping", None) for of in ("attn", "final")]  # these show only in large numbers
    known = known and not any(caps)
    return bool(config._attn_implementation == "sdpa" and model._supports_attention_backend and known)


def windowed(model: PreTrainedModel) -> bool:
    """Whether a layer attends to the last tokens only, as every second one or more of Gemma 3 does."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds


@contextlib.contextmanager
def short_windows(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Inside the block every sliding window is of this many tokens, so that short rows show whether it is kept."""
    every: list[Any] = [model.config.get_text_config(), *model.modules()]
    parts = [part for part in every if getattr(part, "sliding_window", None)]
    before = [part.sliding_window for part in parts]
    try:
        for part in parts:
            part.sliding_window = tokens
        yield
    finally:
        for part, window in zip(parts, before, strict=True):
            part.sliding_window = window


def enabled(model: PreTrainedModel) -> bool:
    """Whether the model reads packed micro-batches (see `loading.load_policy`)."""
    return model.config.get_text_config()._attn_implementation in (ATTENTION, VARLEN)


def pack(pairs: Sequence[tuple[tuple[int, ...], TokenIds]]) -> Packed:
    """The packed layout of (prompt ids, completion ids) pairs, as tensors on the CPU. Equal prompts are packed once."""
    numbers: dict[tuple[int, ...], int] = {}
    prompt_B = np.array([numbers.setdefault(prompt, len(numbers)) for prompt, _ in pairs])
    prompts_PC, prompt_mask_PC = _places([len(prompt) for prompt in numbers], 0)
    lengths_P = prompt_mask_PC.sum(1)
    completions_BT, mask_BT = _places([len(completion) for _, completion in pairs], int(lengths_P.sum()))
    last_of_prompt_B1 = (prompts_PC[:, 0] + lengths_P - 1)[prompt_B, None]
    row_K, column_K = mask_BT.nonzero()
    rows_BS = np.concatenate([prompts_PC[prompt_B], completions_BT], axis=1)
    of_row_BS = np.concatenate([prompt_mask_PC[prompt_B], mask_BT], axis=1)
    arrays = {
        "ids_N": np.concatenate([*numbers, *(completion for _, completion in pairs)], dtype=np.int64),
        "positions_N": np.concatenate([prompt_mask_PC.nonzero()[1], lengths_P[prompt_B][row_K] + column_K]),
        "prompts_PC": prompts_PC,
        "prompt_mask_PC": prompt_mask_PC,
        "completions_BT": completions_BT,
        "prompt_B": prompt_B,
        "back_N": np.concatenate([prompt_mask_PC.ravel().nonzero()[0], prompts_PC.size + mask_BT.ravel().nonzero()[0]]),
        "before_K": np.concatenate([last_of_prompt_B1, completions_BT[:, :-1]], axis=1)[mask_BT],
        "row_K": row_K,
        "column_K": column_K,
        "query_starts": _starts(lengths_P, mask_BT.sum(1)),
        "key_starts": _starts(lengths_P, of_row_BS.sum(1)),
        "keys_S": np.concatenate([prompts_PC[prompt_mask_PC], rows_BS[of_row_BS]]),
    }
    return Packed(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _places(lengths: Sequence[int], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (B, L) of sequences that follow each other from `start`, a row each, filled up with 0; and where they are real."""
    lengths_B = np.array(lengths)
    columns_L = np.arange(lengths_B.max())
    mask_BL = columns_L < lengths_B[:, None]
    first_B = start + lengths_B.cumsum() - lengths_B
    return np.where(mask_BL, first_B[:, None] + columns_L, 0), mask_BL


def _starts(*lengths: np.ndarray) -> np.ndarray:
    """Where each of these sequences starts, and where the last one ends."""
    return np.concatenate([[0], np.concatenate(lengths).cumsum()]).astype(np.int32)


def of_one_query(mask_BL: Tensor, added: bool) -> Tensor:
    """The attention mask of one query per row, shape (B, 1, 1, L), from 1 for tokens and 0 for padding.

    `added`: as numbers that are added to the scores, which every layer would otherwise compute again; else booleans.
    """
    if not added:
        return mask_BL.bool()[:, None, None]
    return torch.zeros(mask_BL.shape, device=mask_BL.device).masked_fill_(mask_BL == 0, -torch.inf)[:, None, None]


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Packed | None = None,
    prompts: Any = None,
    sliding_window: int | None = None,
    varlen: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: (B, heads, L, head size) -> (B, L, heads, head size).

    `packed`: the layout of a micro-batch in one row. `prompts`: `SharedPrompts` of the sampler. Without either this is
    Transformers' `sdpa`. `sliding_window`: how many tokens a token attends to, itself among them; None = all before it.
    `varlen`: see `VARLEN`; in 16 bits alone, and not on CPUs.
    """
    # That of the layer after it: without autocast the query's (keys and values may come from a cache in 32 bits), else any.
    dtype = min(query.dtype, value.dtype, key=lambda dtype: dtype.itemsize)
    in_32_bits = query.device.type in IN_32_BITS
    if in_32_bits:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False) if in_32_bits else contextlib.nullcontext():
        if packed is not None and varlen and product_dtype(query) in FLASH_DTYPES and not in_32_bits:
            out = _varlen_attention(query, key, value, packed, scaling, sliding_window)
        elif packed is not None:
            out = _packed_attention(query, key, value, packed, dropout, scaling, sliding_window)
        elif prompts is not None:
            out = prompts.attention(module.layer_idx, query, key, value, scaling)
        elif query.shape[2] == 1 and dropout == 0 and not kwargs.get("is_causal"):
            out = _one_query(query, key, value, attention_mask, scaling)
        else:
            options = {"dropout": dropout, "scaling": scaling, **kwargs}
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return (out.to(dtype) if in_32_bits else out), None


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask_B11L: Tensor | None, scaling: float | None) -> Tensor:
    """Attention of the next token: query heads that share a key head are its queries, so that no key or value is repeated."""
    folded = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    return scaled_dot_product_attention(folded, key, value, mask_B11L, scale=scaling).reshape(len(query), 1, query.shape[1], -1)


def _packed_attention(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    rows_BS = torch.cat([packed.prompts_PC[packed.prompt_B], packed.completions_BT], dim=1)
    repeats = query.shape[1] // key.shape[1]  # query heads that share a key head
    shares = query.device.type in IN_32_BITS  # the kernel of CPUs takes keys and values as they are
    if window is not None and rows_BS.shape[1] <= window:
        window = None  # no row is longer

    def rows(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        k, v = (_rows(s, keys) if shares else repeat_kv(_rows(s, keys), repeats) for s in (key, value))
        if window is not None:
            mask = _within(window, packed.positions_N[queries], packed.positions_N[keys], mask)
        q, causal = _rows(query, queries), mask is None
        out = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scaling, enable_gqa=shares)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)

    of_prompts = rows(packed.prompts_PC, packed.prompts_PC, None)
    of_completions = rows(packed.completions_BT, rows_BS, packed.mask)
    out = _take(torch.cat([of_prompts, of_completions]), packed.back_N)
    return out.view(1, len(out), query.shape[1], -1)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None
) -> Tensor:
    """All queries as they lie in the row; keys and values of a prompt again for each of its completions. The last query of a
    sequence is at its last key, and the others before it."""
    dtype = product_dtype(query)
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    longest_prompt, longest = packed.prompts_PC.shape[1], packed.completions_BT.shape[1]
    out: Any = varlen_attn(
        query.contiguous(),
        key.index_select(0, packed.keys_S),
        value.index_select(0, packed.keys_S),
        packed.query_starts,
        packed.key_starts,
        max(longest_prompt, longest),
        longest_prompt + longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    attended: Tensor = out[None]
    return attended


def check_varlen(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """UserError where this attention is chosen, and does not compute two tokens and their gradients in `dtype` on the device.

    A GPU or a head size may be one that it is not for, or the version of torch another.
    """
    config = model.config.get_text_config()
    dtype = model.dtype if dtype == torch.float32 else dtype  # without autocast, attention has the type of the weights
    if config._attn_implementation != VARLEN or device.type in IN_32_BITS or dtype not in FLASH_DTYPES:
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    starts = torch.tensor([0, 2], dtype=torch.int32, device=device)
    query, key, value = (
        torch.zeros(2, heads, size, dtype=dtype, device=device, requires_grad=True)
        for heads in (config.num_attention_heads, of_keys, of_keys)
    )
    try:
        out: Any = varlen_attn(query, key, value, starts, starts, 2, 2, scale=None, window_size=(-1, 0), enable_gqa=True)
        out.sum().backward()
    except (RuntimeError, TypeError) as error:
        wrong = f"its attention without padding does not work with this GPU, model or torch ({error_line(error)})"
        raise UserError("model.attn_implementation", wrong, "Write sdpa") from error


def product_dtype(states: Tensor) -> torch.dtype:
    """The type in which matrix products of these numbers are computed: that of autocast, or their own."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _within(window: int, queries_BT: Tensor, keys_BS: Tensor, mask: Tensor | None) -> Tensor:
    """The mask (causal where it is None) of keys that are also less than `window` positions before the query: (B, 1, T, S)."""
    near = queries_BT[:, None, :, None] - keys_BS[:, None, None, :] < window
    return near & (torch.ones_like(near).tril() if mask is None else mask)


def _rows(states: Tensor, places_BL: Tensor) -> Tensor:
    """The tokens of each row: (1, heads, N, head size) -> (B, heads, L, head size)."""
    heads, size = states.shape[1], states.shape[3]
    taken = _take(states[0].transpose(0, 1).flatten(1), places_BL.flatten())
    return taken.view(*places_BL.shape, heads, size).transpose(1, 2)


def _take(states: Tensor, places: Tensor) -> Tensor:
    """Rows of a matrix. `gather`, because on CPUs its backward pass sums repeated rows faster than that of indexing."""
    return states.gather(0, places[:, None].expand(-1, states.shape[1]))


AttentionInterface.register(ATTENTION, attention)
AttentionInterface.register(VARLEN, partial(attention, varlen=True))
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
