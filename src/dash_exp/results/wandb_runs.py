"""Download runs from Weights & Biases into folders with the layout of a sweep, for `results.load`."""

from __future__ import annotations

import atexit
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import AuthenticationError

from dash_exp.core.errors import UserError
from dash_exp.results.run_folder import ID_FILE, RECORD_FILES, SCHEME, SWEEP_FILE
from dash_exp.results.wandb_logger import logged_in

TIMEOUT_S = 30  # for one request to the server


def download(path: str) -> list[Path]:
    """Download the records of the runs at `wandb:ENTITY/PROJECT[/GROUP]`, as folders that `cells.cells_of` reads.

    A group becomes a sweep folder with one folder per run; a run without a group becomes a run folder. They are in a temporary
    folder, which is deleted when the process ends. Runs without a record (of other programs) are listed and skipped. Raises
    UserError if the login, server, project or runs are missing, and for two runs of the same cell.
    """
    entity, project, group = parse(path)
    found = runs(path, entity, project, group)
    if not found:
        raise UserError(
            path, "contains no runs", "Check the name of the group in W&B; upload offline runs with `wandb sync` first"
        )
    root = temporary_folder()
    of_folder: dict[Path, Any] = {}
    without: list[str] = []
    for run in found:
        place = root / "groups" / folder_name(run.group) if run.group else root / "alone" / run.id
        folder = place / folder_name(run.config.get("cell") or run.name or run.id)
        if folder in of_folder:
            raise UserError(
                path,
                f"contains two runs of the cell {folder.name}: {of_folder[folder].id} and {run.id}",
                "Delete one of them in W&B, or move it to another group",
            )
        if not download_record(path, run, folder):
            without.append(f"{run.name} ({run.id})")
            continue
        of_folder[folder] = run
    if without:
        print(f"{path}: skipped, because they are not runs of dash_exp: {', '.join(without)}", file=sys.stderr)
    if not of_folder:
        raise UserError(path, "contains no runs of dash_exp", "Give runs that were recorded with logger=wandb or logger=both")
    return list(dict.fromkeys(folder.parent if run.group else folder for folder, run in of_folder.items()))


def parse(path: str) -> tuple[str, str, str | None]:
    """`wandb:team/project/sweep` -> ("team", "project", "sweep"); the last is None without a group."""
    words = path.removeprefix(SCHEME).split("/", 2)
    if len(words) < 2 or not all(words):
        raise UserError(path, "does not name runs in W&B", f"Write {SCHEME}ENTITY/PROJECT/GROUP, or {SCHEME}ENTITY/PROJECT")
    return words[0], words[1], words[2] if len(words) == 3 else None


def runs(where: str, entity: str, project: str, group: str | None = None, ids: Sequence[str] | None = None) -> list[Any]:
    """The runs of a project, oldest first: all of them, those of one group, or those with these ids.

    `where` is what the user wrote. It is used in the UserError if the login, server or project is missing.
    """
    filters: dict[str, Any] = {} if group is None else {"group": group}
    if ids is not None:
        filters["name"] = {"$in": list(ids)}  # the server's name for the id
    if not logged_in():
        raise UserError(where, "this machine is not logged in to W&B", "Run `wandb login`, or set WANDB_API_KEY")
    with as_user_error(where):
        api = wandb.Api(timeout=TIMEOUT_S)
        try:
            found = list(api.runs(f"{entity}/{project}", filters=filters, order="+created_at", lazy=False))
        except ValueError as error:  # the SDK raises this if the server has no such project
            raise UserError(where, f"W&B has no project {entity}/{project} for this login", "Check its name") from error
    return list({run.id: run for run in found}.values())


def download_record(where: str, run: Any, folder: Path) -> bool:
    """Download the record of a run into `folder`, which then looks like its run folder. Returns False without a record."""
    names = [f"record/{name}" for name in (*RECORD_FILES, SWEEP_FILE)]
    new = folder.with_name(f"{run.id}.new")
    with as_user_error(where):
        files = {file.name: file for file in run.files(names=names) if file.name in names}
        if "record/config.yaml" not in files:
            return False
        for file in files.values():
            file.download(root=str(new)).close()
    folder.parent.mkdir(parents=True, exist_ok=True)
    (new / "record").rename(folder)
    new.rmdir()
    (folder / ID_FILE).write_text(f"{run.id}\n-1\n", encoding="utf-8")
    if run.group and (folder / SWEEP_FILE).is_file():
        (folder / SWEEP_FILE).replace(folder.parent / SWEEP_FILE)  # the list of the newest run is kept
    return True


@contextmanager
def as_user_error(where: str) -> Iterator[None]:
    """Turn every error of the SDK about the server into a UserError."""
    try:
        yield
    except UserError:
        raise
    except AuthenticationError as error:
        raise UserError(
            where, str(error).rstrip("."), "Check the network, WANDB_BASE_URL and the key (`wandb login`)"
        ) from error
    except Exception as error:  # its errors have no common base class
        wrong = f"W&B gave no valid answer ({type(error).__name__}: {str(error).rstrip('.')})"
        raise UserError(where, wrong, "Check the network, and try again") from error


def temporary_folder() -> Path:
    """A folder that is deleted when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="dash_exp-wandb-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def folder_name(name: Any) -> str:
    """The name of a W&B run or group as a valid folder name."""
    text = str(name).replace("/", "_")
    return "_" if text in ("", ".", "..") else text
