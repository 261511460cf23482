"""Files of JSON lines for the tests of data sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(folder: Path, rows: Iterable[Mapping[str, Any] | str], file: str = "train.jsonl") -> str:
    """The folder, with a file of these rows; a text is a line as it is."""
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / file).write_text("\n".join(lines) + "\n")
    return str(folder)
