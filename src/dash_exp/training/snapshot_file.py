"""The file of a snapshot: complete on the disk or not there, and recognised where it is damaged."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from dash_exp.results.run_folder import SNAPSHOTS, snapshots

KEPT = 2  # snapshots: the last one, and the one before it in case the last one is damaged

State = Mapping[str, Any]


def write(run_dir: Path, state: State) -> None:
    """Write the snapshot of outer step `state["step"]`, and remove those that are no longer kept."""
    folder = run_dir / SNAPSHOTS
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "new.pt"
    try:
        with new.open("w+b") as file:
            save(state, file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(new, folder / f"step_{state['step']:05d}-{digest[:16]}.pt")
    finally:
        new.unlink(missing_ok=True)
    for old in snapshots(run_dir)[KEPT:]:
        old.unlink()


def save(state: State, file: IO[bytes]) -> None:
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


def read(file: Path) -> State:
    """One snapshot, in CPU memory. Raises where its contents do not match the digest in its name."""
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
        if not file.stem.endswith(digest[:16]):
            raise ValueError("its contents do not match the digest in its name")
        contents.seek(0)
        return torch.load(contents, map_location="cpu", weights_only=True)
