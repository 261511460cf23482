"""Counts the bytes of all tensors that are alive, by kind, and keeps the peak."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes that are alive, by kind: `now`, and at the `peak`. A tensor is counted when it is created, a shared storage once.

    `vocabulary`: activations with so many columns are logits. `share`: the part of a kind that counts, by default all of it.
    """

    def __init__(self, vocabulary: int, share: Mapping[str, float]) -> None:
        super().__init__()
        self.vocabulary, self.share = vocabulary, share
        self.kind = "activations"  # of new tensors
        self.now: Counter[str] = Counter()
        self.peak: dict[str, float] = {}
        self._kinds: dict[int, tuple[str, float]] = {}  # kind and bytes of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._kinds:
            return
        logits = self.kind == "activations" and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
        self._add(storage, "logits" if logits else self.kind)
        weakref.finalize(storage, self._remove, storage._cdata)
        if self.now.total() > sum(self.peak.values()):
            self.peak = dict(self.now)

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        size = storage.nbytes() * self.share.get(kind, 1.0)
        self._kinds[storage._cdata] = (kind, size)
        self.now[kind] += size  # type: ignore[assignment]

    def _remove(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self.now[kind] -= size  # type: ignore[assignment]

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor that is alive as another kind from now on."""
        self._remove(tensor.untyped_storage()._cdata)
        self._add(tensor.untyped_storage(), kind)

    @contextlib.contextmanager
    def creating(self, kind: str) -> Iterator[None]:
        """Tensors that are created inside the block are of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def reset_peak(self) -> None:
        """Start the peak again from what is alive now."""
        self.peak = dict(self.now)
