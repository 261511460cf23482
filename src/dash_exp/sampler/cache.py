"""A KV cache with room to grow: a new token is written in place, where Transformers' DynamicCache copies everything."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values, (B, heads, L, head size), are views of buffers that are longer than L."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        length = self.get_seq_length()
        needed = length + key_states.shape[-2]
        if self._room is None or needed > self._room[0].shape[-2]:
            keys = key_states[..., :0, :] if self.keys is None else self.keys
            values = value_states[..., :0, :] if self.values is None else self.values
            self._room = (_with_room(keys, needed), _with_room(values, needed))
            self.is_initialized = True
        keys, values = self._room
        keys[..., length:needed, :] = key_states
        values[..., length:needed, :] = value_states
        self.keys, self.values = keys[..., :needed, :], values[..., :needed, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None  # the selection is a copy of its own


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """A DynamicCache whose full-attention layers have room; layers of other kinds stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(states: Tensor, needed: int) -> Tensor:
    """A copy of `states` with room for `needed` positions and a quarter more."""
    room = states.new_empty(*states.shape[:-2], needed + max(32, needed // 4), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room
