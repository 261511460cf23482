"""Weights on their way to sampling servers: a folder that the servers read, in shared memory or on a disk that all of them see.

Each version has a folder of its own, which is deleted when no server needs it any more. vLLM may keep what it knows of a path,
so no path is used twice.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from dash_exp.core.errors import UserError
from dash_exp.models import adapter
from dash_exp.sampling.engine import check_complete

SHARED_MEMORY = Path("/dev/shm")
SETTING = "rollout.sampler.weights_dir"
PREFIX = "dash_exp_weights_"
LOCK = "lock"  # held by the process that a folder belongs to
NEW_S = 60.0  # a folder may be so old without a lock: its process has just made it


class Room:
    """A folder for the weights of this run, in `place` (None: in shared memory, or in the folder of temporary files without any).

    It is made when it is first needed. Folders of runs that were killed are deleted then: in shared memory they would keep what
    they take.
    """

    def __init__(self, place: str | None) -> None:
        self.is_shared_memory = place is None and SHARED_MEMORY.is_dir()
        beside = SHARED_MEMORY if self.is_shared_memory else Path(tempfile.gettempdir())
        self.within = Path(place).expanduser().absolute() if place else beside
        self._path: Path | None = None
        self._lock: IO[str] | None = None
        self._folders = 0

    def folder(self, size: int) -> Path:
        """A new folder, for so many bytes."""
        if self._path is None:
            self._make()
        assert self._path is not None
        if (free := shutil.disk_usage(self._path).free) < size:
            raise UserError(
                f"{SETTING}={self.within}",
                f"has {free / 2**30:.1f} GiB free, and the weights for sampling servers take {size / 2**30:.1f}",
                "Write a folder with more room that the servers can read, or use rollout.sampler.transfer=nccl between GPUs",
            )
        self._folders += 1
        made = self._path / str(self._folders)
        made.mkdir()
        return made

    def _make(self) -> None:
        try:
            self.within.mkdir(parents=True, exist_ok=True)
            delete_left_behind(self.within)
            self._path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.within))
            self._lock = locked(self._path)
        except OSError as error:
            wrong = f"cannot be written to ({error.strerror})"
            raise UserError(f"{SETTING}={self.within}", wrong, "Write another folder") from error

    def close(self) -> None:
        """Delete it, with the weights in it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def locked(folder: Path) -> IO[str] | None:
    """A lock on a folder, until it is closed or the process ends. None if another process has it."""
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def delete_left_behind(within: Path) -> None:
    """Delete the folders of processes that ended without `Room.close`."""
    for folder in within.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or just deleted by another process
            if time.time() - folder.stat().st_mtime > NEW_S and (lock := locked(folder)) is not None:
                lock.close()
                shutil.rmtree(folder, ignore_errors=True)


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


def machine() -> str:
    """A name for this machine, the same in all of its containers, until it is started again."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()
