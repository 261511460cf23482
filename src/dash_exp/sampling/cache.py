"""A KV cache with spare room: tokens are written in place, and finished rows are removed without copying the others.

Transformers' DynamicCache copies everything for each new token and for each selection of rows. With our own attention
(`packing`) the keys and values of a prompt can be stored once for all its completions: `SharedPrompts`.
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
    """Keys and values, (B, heads, L, head size), are views of larger buffers."""

    _room: tuple[Tensor, Tensor] | None = None

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.stored_as = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.stored_as is not None:
            key_states, value_states = key_states.to(self.stored_as), value_states.to(self.stored_as)
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
        """Select these rows in this order; a row can be selected several times."""
        super().batch_select_indices(indices)
        self._room = None  # the selection is a copy

    def leave(self, order: Tensor, moved: Tensor) -> None:
        """Keep only the rows `order`. `moved` are the new places whose row comes from further back; all others stay."""
        if self._room is None:
            return self.batch_select_indices(order)
        rows, length = len(order), self.get_seq_length()
        for states in self._room:
            states[moved, :, :length] = states[order[moved], :, :length]
        self.keys, self.values = (states[:rows, :, :length] for states in self._room)
        return None


class RoomyCache(DynamicCache):
    """A cache whose full-attention layers have spare room; other kinds of layers are unchanged.

    `dtype`: store keys and values in this type; None = as they come.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config=config)
        self.dtype = dtype
        self.layers = [RoomyLayer(dtype) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def leave(self, ended: Sequence[bool], device: torch.device) -> Tensor:
        """Remove the rows that have ended and move the last rows into the gaps. Returns the old index of each new row.

        All of it is found out on the CPU, so that no index has to be waited for.
        """
        rows = len(ended) - sum(ended)
        gaps = [row for row in range(rows) if ended[row]]
        places = list(range(rows))
        for gap, row in zip(gaps, (row for row in range(rows, len(ended)) if not ended[row]), strict=True):
            places[gap] = row
        order, moved = (torch.tensor(found, dtype=torch.long, device=device) for found in (places, gaps))
        for layer in self.layers:
            if isinstance(layer, RoomyLayer):
                layer.leave(order, moved)
            else:
                layer.batch_select_indices(order)  # type: ignore[union-attr]
        return order


class SharedPrompts:
    """Keys and values of P prompts, stored once. All completions of a group attend to those of their prompt.

    The cache of the completions starts after the prompts. Scores are computed separately for both, and the softmax is over
    both together (as in Hydragen, Juravsky et al. 2024). `mask_PC` is 0 at padding; `prompt_of` is the prompt of each
    completion. All layers of the cache must be `RoomyLayer`s.
    """

    def __init__(self, cache: RoomyCache, mask_PC: Tensor, prompt_of: Sequence[int]) -> None:
        found = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in cast(list[RoomyLayer], cache.layers)]
        self.layers = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in found]  # (P x heads, C, head size)
        self.heads = found[0][0].shape[1]
        self.added = packing.of_one_query(mask_PC, added=True)[:, 0].repeat_interleave(self.heads, dim=0)  # (P x heads, 1, C)
        self._lay_out(prompt_of)

    def _lay_out(self, prompt_of: Sequence[int]) -> None:
        """Compute `places_BH`: the index of each completion and key head in a flattened (P, heads, G)."""
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
        """Keep only these completions, in this order. Once half of the places are empty, unused prompts are removed."""
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
        """Attention of one query per completion, (B, query heads, 1, size), to its prompt and own keys, (B, heads, T, size).

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
        """(R, Q, n) -> (P x heads, G x Q, n), with 0 for completions that have ended."""
        groups = rows.new_zeros(len(self.added) * self.largest, *rows.shape[1:])
        return groups.index_copy_(0, self.places_BH.flatten(), rows).view(len(self.added), -1, rows.shape[-1])

    def _from_groups(self, groups: Tensor) -> Tensor:
        """The inverse of `_by_group`."""
        rows = groups.view(len(self.added) * self.largest, -1, groups.shape[-1])
        return rows.index_select(0, self.places_BH.flatten())


def _with_room(states: Tensor, needed: int) -> Tensor:
    """A copy of `states` with room for `needed` positions and at least half as many more."""
    room = states.new_empty(*states.shape[:-2], needed + max(64, needed // 2), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room
