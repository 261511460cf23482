"""Settings files in another encoding than UTF-8, which Hydra and YAML report without the name of the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dash_exp.core.errors import UserError


def not_utf_8(folders: Iterable[Path]) -> UserError | None:
    """The message for the first YAML file below these folders that is not UTF-8; None where all are."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        content = file.read_bytes()
        try:
            content.decode()
            place = content.find(0)  # UTF-16 without a mark
        except UnicodeDecodeError as error:
            place = error.start
        if place >= 0:
            return UserError(str(file), f"is not UTF-8 (byte {place})", "Save it in UTF-8")
    return None
