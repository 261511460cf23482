"""Runs recorded in Weights & Biases -> folders laid out like those of a sweep, for `results.load`."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from dash_exp.errors import UserError
from dash_exp.logger import logged_in
from dash_exp.results import ID_FILE, RECORD_FILES, SCHEME, SWEEP_FILE

PLACE = f"{SCHEME}ENTITY/PROJECT/GROUP, or {SCHEME}ENTITY/PROJECT for all runs of a project"
TIMEOUT_S = 30  # for one answer of the server


def download(path: str) -> list[Path]:
    """The records of the runs at `wandb:ENTITY/PROJECT[/GROUP]`, as folders that `results.cells_of` reads.

    A group is a sweep folder with a folder per run; a run without a group stands alone. They lie in a temporary folder until
    the process ends. Raises UserError where the place, the login, the server, the runs or their records are not there.
    """
    entity, project, group = parse(path)
    found = runs(path, entity, project, group)
    if not found:
        raise UserError(path, "holds no runs", "Upload offline runs with `wandb sync`, or look for the name of the group in W&B")
    root = temporary_folder()
    folders: dict[Path, str] = {}
    for run in found:
        name = str(run.config.get("cell") or run.name or run.id).replace("/", "_")
        folder = root / run.group.replace("/", "_") / name if run.group else root / run.id / name
        if folder in folders:
            raise UserError(
                path,
                f"runs {folders[folder]} and {run.id} are both of cell {name} in group {run.group}",
                "Delete one of them in W&B, or move it to another group",
            )
        folders[folder] = run.id
        with said(path):
            download_record(run, folder, path)
    return list(dict.fromkeys(folder.parent if (folder.parent / SWEEP_FILE).is_file() or len(list(folder.parent.iterdir())) > 1 else folder for folder in folders))


def parse(path: str) -> tuple[str, str, str | None]:
    """`wandb:team/project/sweep` -> ("team", "project", "sweep"); without a group its place is None."""
    entity, project, group = [*path.removeprefix(SCHEME).split("/", 2), None, None][:3]
    if not entity or not project or group == "":
        raise UserError(path, "does not name runs in W&B", f"Write {PLACE}")
    return entity, project, group


def runs(where: str, entity: str, project: str, group: str | None = None, ids: Sequence[str] | None = None) -> list[Any]:
    """The runs of a project from the oldest to the newest: all, those of one group, or those with these ids."""
    filters: dict[str, Any] = {} if group is None else {"group": group}
    if ids is not None:
        filters["name"] = {"$in": list(ids)}  # the server's word for the id
    with said(where):
        return list(api(where).runs(f"{entity}/{project}", filters=filters, order="+created_at", lazy=False))
