"""The file of a snapshot: complete on the disk or not there, and recognised where it is damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import traceback
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import torch

from dash_exp.results.run_folder import SNAPSHOTS, snapshots

KEPT = 2  # snapshots: the last one, and the one before it in case the last one is damaged
UNFINISHED = ".new"  # at the end of the name of what is being written

State = Mapping[str, Any]


def write(run_dir: Path, state: State) -> None:
    """Write the snapshot of outer step `state["step"]`, and remove those that are no longer kept."""
    folder = run_dir / SNAPSHOTS
    folder.mkdir(parents=True, exist_ok=True)
    write_named(state, folder, stem(state["step"]))
    remove_old(run_dir)


def stem(step: int) -> str:
    """The beginning of the name of a snapshot, before its digest."""
    return f"step_{step:05d}"


def write_named(state: Any, folder: Path, name: str) -> Path:
    """Write `NAME-DIGEST.pt` into the folder, complete or not there."""
    new = folder / (name + UNFINISHED)
    try:
        with new.open("w+b") as file:
            save(state, file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return new.rename(folder / f"{name}-{digest[:16]}.pt")
    finally:
        new.unlink(missing_ok=True)


def remove_old(run_dir: Path) -> None:
    """Remove the snapshots that are no longer kept."""
    for old in snapshots(run_dir)[KEPT:]:
        if old.is_dir():
            shutil.rmtree(old.rename(old.with_name(old.name + UNFINISHED)), ignore_errors=True)
        else:
            old.unlink()


def remove_unfinished(run_dir: Path) -> None:
    """Remove what processes that were killed have left of snapshots."""
    for left in (run_dir / SNAPSHOTS).glob(f"*{UNFINISHED}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()


def save(state: Any, file: IO[bytes]) -> None:
    """`torch.save`, but with the error that ended a write instead of torch's own.

    Whatever ends it, Ctrl-C included, torch's writer is gone when this returns: it may still write when it is destroyed, and
    ends the process where the file is closed by then.
    """
    try:
        torch.save(state, file)
    except BaseException as error:
        cause = (error.__context__ or error) if isinstance(error, RuntimeError) else error
        for each in (error, cause):
            traceback.clear_frames(each.__traceback__)
        raise cause from None


def read(snapshot: Path) -> State:
    """One snapshot, in CPU memory; of one in parts what is not in them. Raises where it is damaged."""
    file = snapshot / f"rest-{digest_in(snapshot)}.pt" if snapshot.is_dir() else snapshot
    with file.open("rb") as contents:
        check(file, contents)
        return torch.load(contents, map_location="cpu", weights_only=True)


def check(file: Path, contents: BufferedReader) -> None:
    """Raise ValueError where the contents do not match the digest in the file's name. Leaves them at their beginning."""
    contents.seek(0)
    if hashlib.file_digest(contents, "sha256").hexdigest()[:16] != digest_in(file):
        raise ValueError("its contents do not match the digest in its name")
    contents.seek(0)


def digest_in(file: Path) -> str:
    """The digest in the name of a file of snapshots, or of a folder."""
    return file.stem[-16:]
