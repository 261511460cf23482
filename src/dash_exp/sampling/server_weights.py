"""Weights on their way to sampling servers: a folder that the servers read, in shared memory or on a disk that all of them see.

Each version has a folder of its own, which is there as long as anyone in this process refers to the weights. vLLM may keep
what it knows of a path, so no path is used twice.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dash_exp.models import adapter
from dash_exp.sampling.engine import check_complete
from dash_exp.sampling.server_room import Room

NUMBERS = itertools.count(1)


class Weights:
    """A copy of the policy's weights in the dtype of sampling. `number`: no others in this process have it.

    `expected`: name and shape of each weight of a whole model. `settings`: those of an adapter (`adapter.described`), if it is
    one. If the weights can be sent over NCCL, they stay on the `device` of the policy as `tensors`, and go into a folder only
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
        self.number = next(NUMBERS)
        self.version = version
        self.settings = settings
        own = next(iter(weights.values())).device  # stale weights are on the CPU (`refresh.copied`)
        self.device = own if may_be_native and own.type == "cuda" else torch.device("cpu")
        self.tensors: Mapping[str, Tensor] = {
            name: tensor.detach().to(device=self.device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        if expected is not None:
            check_complete(self.tensors, expected)
        self._room = room
        self._folder: Path | None = None
        self._lock = threading.Lock()
        if self.device.type != "cpu":
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
                # At the end of the process `Room.close` deletes it: a process forked from this one ends earlier.
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True).atexit = False
                if self.settings is not None:
                    adapter.write(folder, self.settings, tensors)
                else:
                    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
                self._folder = folder
            return self._folder
