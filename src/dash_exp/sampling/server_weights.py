"""Weights on their way to sampling servers: a folder that the servers read, in shared memory or on a disk that all of them see.

Each version has a folder of its own, which is deleted when no server needs it any more. vLLM may keep what it knows of a path,
so no path is used twice.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dash_exp.models import adapter
from dash_exp.sampling.engine import check_complete
from dash_exp.sampling.server_room import Room


class Weights:
    """A copy of the policy's weights in the dtype of sampling, kept until `drop` is called and no server reads it any more.

    `expected`: name and shape of each weight of a whole model. `settings`: those of an adapter (`adapter.described`), if it is
    one. If the weights can be sent over NCCL, they stay on the device of the policy as `tensors`, and go into a folder only
    when a server without a GPU asks for it.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        version: int,
        room: Room,
        *,
        expected: Mapping[str, tuple[int, ...]] | None = None,
        settings: Mapping[str, Any] | None = None,
        may_be_native: bool = False,
    ) -> None:
        self.version = version
        self.settings = settings
        self.device = next(iter(weights.values())).device  # stale weights are on the CPU (`refresh.copied`)
        on_device = may_be_native and self.device.type == "cuda"
        device = None if on_device else "cpu"
        self.tensors: Mapping[str, Tensor] = {
            name: tensor.detach().to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        if expected is not None:
            check_complete(self.tensors, expected)
        self._room = room
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._dropped = False
        if on_device:
            torch.accelerator.synchronize()  # NCCL reads them in its own streams
        else:
            self.folder()
            self.tensors = {}

    def folder(self) -> Path:
        """The folder with the weights, written once: a safetensors file, or PEFT's files of an adapter."""
        with self._lock:
            if self._folder is None:
                tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
                folder = self._room.folder(sum(tensor.nbytes for tensor in tensors.values()))
                if self.settings is not None:
                    adapter.write(folder, self.settings, tensors)
                else:
                    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
                self._folder = folder
            return self._folder

    @contextmanager
    def in_use(self) -> Iterator[Weights]:
        """Inside the block they are there, even if they are dropped meanwhile."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._delete_unused()

    def drop(self) -> None:
        """Delete them as soon as no server reads them."""
        self._dropped = True
        self._delete_unused()

    @property
    def is_gone(self) -> bool:
        return self._dropped and not self._users

    def _delete_unused(self) -> None:
        if self.is_gone:
            self.tensors = {}
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
