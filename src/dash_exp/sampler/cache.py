"""A KV cache with room: tokens are written in place, and rows that end leave it without copying those that stay.

Transformers' DynamicCache copies everything for each new token and for each selection of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


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


def _with_room(states: Tensor, needed: int) -> Tensor:
    """A copy of `states` with room for `needed` positions and half as many more."""
    room = states.new_empty(*states.shape[:-2], needed + max(64, needed // 2), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room
