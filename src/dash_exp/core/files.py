"""Files that are either complete or absent, and what is wrong with a disk that cannot take them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TROUBLES = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the quota of the disk is used up", "Free some space"),
    errno.EROFS: ("the disk is read-only", "Choose a folder that can be written"),
    errno.EACCES: ("permission is denied", "Choose a folder that can be written"),
    errno.EPERM: ("permission is denied", "Choose a folder that can be written"),
    errno.EIO: ("the disk fails", "Look at its health, and at the network if it is on another machine"),
    errno.ESTALE: ("the disk fails", "Look at its health, and at the network if it is on another machine"),
}
# Libraries with their own file access (safetensors) report the text of an error instead of its number.
TEXTS = {os.strerror(number).lower(): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)}


@contextmanager
def whole(path: Path, mode: str = "w", **kwargs: Any) -> Iterator[IO[Any]]:
    """A file that replaces `path`, and is on the disk, when the block ended without an error; otherwise `path` stays.

    `kwargs` are those of `open`; text is UTF-8.
    """
    new = path.with_name(f"{path.name}.new")
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    try:
        with new.open(mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    with whole(path) as file:
        file.write(text)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that replaces `path` when the block ended without an error; otherwise `path` stays as it was."""
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Around writing several files into a folder: waits while another process does so.

    The folder itself is locked, so no file is left behind. Where a file system cannot do that, nothing is waited for.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def mend_folder(path: Path) -> None:
    """Clean up after a process that ended in the middle of `whole_folder`."""
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def trouble(error: BaseException) -> tuple[str, str, str] | None:
    """Where, what is wrong and what to do, if the error is that of a disk that cannot be written; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in TROUBLES:
        number = next((n for text, n in TEXTS.items() if text in str(error).lower()), None)
    return None if number is None else (str(getattr(error, "filename", None) or ""), *TROUBLES[number])
