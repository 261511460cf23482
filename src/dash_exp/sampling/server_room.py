"""Folders for weights on their way, in shared memory or on a disk. It loads no large package."""

from __future__ import annotations

import platform
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from dash_exp.core.errors import UserError
from dash_exp.core.process import LOCK_FILE, in_use

SHARED_MEMORY = Path("/dev/shm")
SETTING = "rollout.sampler.weights_dir"
UPLOAD = "/dash_exp/weights"  # the route of `upload.Upload`
PREFIX = f"dash_exp_weights@{platform.node()}@"  # on a shared disk one machine may not see the locks of another
SERVED = f"dash_exp_served@{platform.node()}@"  # begins the name of a folder that `vllm serve` starts from
NEW_S = 60.0  # a folder may be so old without a lock: its process has just made it


class Room:
    """Folders of this process in `place` (None: in shared memory, or where temporary files are without any).

    When the first is made, those of processes that were killed are deleted: in shared memory they would keep what they take.
    """

    def __init__(self, place: str | None) -> None:
        beside = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        self.within = Path(place).expanduser().absolute() if place else beside
        self._path: Path | None = None
        self._lock: FileLock | None = None
        self._guard = threading.Lock()

    def folder(self, size: int) -> Path:
        """A new folder, for so many bytes."""
        try:
            with self._guard:
                path = self._path = self._path or self._made()
            self.check(size)
            return Path(tempfile.mkdtemp(dir=path))
        except OSError as error:
            wrong = f"cannot be written to ({error.strerror})"
            raise UserError(f"{SETTING}={self.within}", wrong, "Write another folder") from error

    def check(self, size: int) -> None:
        """Raise UserError where there is not enough room for so many bytes."""
        if (free := shutil.disk_usage(self.within).free) < size:
            raise UserError(
                f"{SETTING}={self.within}",
                f"has {free / 2**30:.1f} GiB free, and the weights for sampling servers take {size / 2**30:.1f}",
                "Write a folder with more room that the servers can read, or use rollout.sampler.transfer=nccl between GPUs",
            )

    def _made(self) -> Path:
        self.within.mkdir(parents=True, exist_ok=True)
        delete_left_behind(self.within)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.within))
        self._lock = locked(path)
        return path

    def close(self) -> None:
        """Delete them, with the weights in them."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()


def locked(folder: Path) -> FileLock:
    """The lock by which other processes see that a folder is in use, as long as this process lives."""
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    with suppress(OSError, NotImplementedError):  # a disk without locks, where nothing is deleted either
        lock.acquire(timeout=0)
    return lock


def delete_left_behind(within: Path, prefix: str = PREFIX) -> None:
    """Delete the folders of processes of this machine that ended without deleting them, as when they were killed."""
    for folder in within.glob(f"{prefix}*"):
        with suppress(OSError, NotImplementedError):  # of another user, or just deleted by another process
            if time.time() - folder.stat().st_mtime > NEW_S and not in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
