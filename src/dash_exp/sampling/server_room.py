"""Folders for weights on their way, in shared memory or on a disk. It loads no large package."""

from __future__ import annotations

import fcntl
import platform
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from dash_exp.core.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
SETTING = "rollout.sampler.weights_dir"
PREFIX = "dash_exp_weights_"
LOCK = "lock"  # held by the process that a folder belongs to
NEW_S = 60.0  # a folder may be so old without a lock: its process has just made it


class Room:
    """A folder for the weights of this run, in `place` (None: in shared memory, or where temporary files are without any).

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


def machine() -> str:
    """A name for this machine, the same in all of its containers, until it is started again."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()
