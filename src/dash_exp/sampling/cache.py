"""A KV cache with room: tokens are written in place, and rows that end leave it without copying those that stay.

Transformers' DynamicCache copies everything for each new token and for each selection of rows. Where attention is our own
(`packing`), what a cache holds of prompts can stay there once for all completions behind them: `SharedPrompts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from dash_exp.models import packing


class RoomyLayer(DynamicLayer):
    """Keys and values, (B, heads, L, head size), are views of buffers with more rows and positions."""

    _room: tuple[Tensor, Tensor] | None = None

    def __init__(self, in_32_bits: bool) -> None:
        super().__init__()
        self.in_32_bits = in_32_bits

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.in_32_bits:
            key_states, value_states = key_states.float(), value_states.float()
        length = self.get_seq_length()
        needed, rows = length + key_states.shape[-2], len(key_states)
        if self._room is None or needed > self._room[0].shape[-2]:
            keys = key_states[..., :0, :] if self.keys is None else self.keys
            values = value_states[..., :0, :] if self.values is None else self.values
            self._room = (_with_room(keys, needed), _with_room(values, needed))
            self.is_initialized = True
        keys, values = self._room
        keys[:rows, :, length:needed] = key_states
        values[:rows, :, length:needed] = value_states
        self.keys, self.values = keys[:rows, :, :needed], values[:rows, :, :needed]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Those rows in that order, a row perhaps several times."""
        super().batch_select_indices(indices)
        self._room = None  # the selection is a copy of its own

    def leave(self, order: Tensor, moved: Tensor) -> None:
        """Fewer rows, `order` of those so far; `moved` are the new ones that are not where they were, all from behind."""
        if self._room is None:
            return self.batch_select_indices(order)
        rows, length = len(order), self.get_seq_length()
        for states in self._room:
            states[moved, :, :length] = states[order[moved], :, :length]
        self.keys, self.values = (states[:rows, :, :length] for states in self._room)
        return None


class RoomyCache(DynamicCache):
    """Its full-attention layers have room; layers of other kinds stay as they are.

    `in_32_bits`: of keys and values, where attention computes so (`packing.IN_32_BITS`) and would convert them at every token.
    """

    def __init__(self, config: PreTrainedConfig, in_32_bits: bool = False) -> None:
        super().__init__(config=config)
        self.layers = [RoomyLayer(in_32_bits) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def leave(self, ended_B: Tensor) -> Tensor:
        """Take the rows out that have ended. Returns which row is where: the last ones have moved into the gaps."""
        rows = int((~ended_B).sum())
        order = torch.arange(rows, device=ended_B.device)
        moved = ended_B[:rows].nonzero().flatten()
        order[moved] = rows + (~ended_B[rows:]).nonzero().flatten()
        for layer in self.layers:
            if isinstance(layer, RoomyLayer):
                layer.leave(order, moved)
            else:
                layer.batch_select_indices(order)  # type: ignore[union-attr]
        return order


class SharedPrompts:
    """Keys and values of P prompts, as a cache has read them. The completions of a group look at theirs all at once.

    The cache of the completions begins behind the prompts. Scores are computed for both apart, and the softmax over both (as in
    Hydragen, Juravsky et al. 2024). `mask_PC` is 0 at padding; `prompt_of` says which prompt each completion has. All layers of
    the cache are `RoomyLayer`s, and attention gets what they hold.
    """

    def __init__(self, cache: RoomyCache, mask_PC: Tensor, prompt_of: Sequence[int]) -> None:
        found = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in cast(list[RoomyLayer], cache.layers)]
        self.layers = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in found]  # (P x heads, C, head size)
        self.heads = found[0][0].shape[1]
        self.added = packing.of_one_query(mask_PC, added=True)[:, 0].repeat_interleave(self.heads, dim=0)  # (P x heads, 1, C)
        self._lay_out(prompt_of)

    def _lay_out(self, prompt_of: Sequence[int]) -> None:
        """Find out where the query of each completion for each head of keys stands among (P, heads, G): `places_BH`."""
        sizes: Counter[int] = Counter()
        places = []  # in its group
        for prompt in prompt_of:
            places.append(sizes[prompt])
            sizes[prompt] += 1
        self.prompt_of = prompt_of
        self.largest = max(sizes.values())
        first_B = torch.tensor([p * self.heads * self.largest + g for p, g in zip(prompt_of, places, strict=True)])
        self.places_BH = (first_B[:, None] + torch.arange(self.heads) * self.largest).to(self.added.device)

    def stay(self, order: Tensor) -> None:
        """Only these completions are left, in this order. Once half of the places are empty, prompts go that have none left."""
        prompt_of = [self.prompt_of[row] for row in order.tolist()]
        if 2 * len(prompt_of) * self.heads > len(self.added) * self.largest:
            self.prompt_of, self.places_BH = prompt_of, self.places_BH[order]
            return
        kept = sorted(set(prompt_of))
        rows = torch.tensor([p * self.heads + head for p in kept for head in range(self.heads)], device=order.device)
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.added = self.added[rows]
        numbers = {prompt: number for number, prompt in enumerate(kept)}
        self._lay_out([numbers[prompt] for prompt in prompt_of])

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Of one query a completion, (B, query heads, 1, size), over its prompt and its own keys, (B, heads, T, size).

        Returns (B, 1, query heads, size).
        """
        keys, values = self.layers[layer]
        n_prompt = keys.shape[1]
        query_RQS = (query * scaling).reshape(self.places_BH.numel(), -1, query.shape[-1])  # R = B x heads, Q queries for each
        of_prompt = self._from_groups(torch.baddbmm(self.added, self._by_group(query_RQS), keys.mT))
        weights_RQL = torch.cat([of_prompt, torch.bmm(query_RQS, key.flatten(0, 1).mT)], dim=-1).softmax(dim=-1)
        out = self._from_groups(torch.bmm(self._by_group(weights_RQL[..., :n_prompt]), values))
        out = torch.baddbmm(out, weights_RQL[..., n_prompt:], value.flatten(0, 1))
        return out.view(len(query), 1, query.shape[1], -1)

    def _by_group(self, rows: Tensor) -> Tensor:
        """(R, Q, n) -> (P x heads, G x Q, n), 0 where a completion has left."""
        groups = rows.new_zeros(len(self.added) * self.largest, *rows.shape[1:])
        return groups.index_copy_(0, self.places_BH.flatten(), rows).view(len(self.added), -1, rows.shape[-1])

    def _from_groups(self, groups: Tensor) -> Tensor:
        """And back."""
        rows = groups.view(len(self.added) * self.largest, -1, groups.shape[-1])
        return rows.index_select(0, self.places_BH.flatten())


def _with_room(states: Tensor, needed: int) -> Tensor:
    """A copy of `states` with room for `needed` positions and half as many more."""
    room = states.new_empty(*states.shape[:-2], needed + max(64, needed // 2), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room
