"""The cells of a sweep that runs: each is read again only where its files have changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.results.cells import Cell, Results, compared, folders_of, load_cell
from dash_exp.results.run_folder import RECORD_FILES, RESULT_FILE, SWEEP_FILE, is_run, read_sweep

Mark = dict[str, tuple[int, int]]  # by file: when it was written last (ns), and its size
SIGNS = (*RECORD_FILES, "train.log")
GIVE = "Give the folder of a sweep, as in multirun/NAME"


class Reader:
    """The cells of one folder, as they were at the last `look`.

    `unread`: by the name of a cell why it could not be read; it then is as it was before. Only the files of cells are kept: the
    list of cells is short, and read at each look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: dict[str, str] = {}
        self._cells: dict[Path, tuple[Mark, Cell]] = {}

    def look(self) -> bool:
        """Read what has changed. Returns whether anything has. Raises UserError where the list of the sweep is damaged."""
        folders: dict[Path, dict[str, str]] = {}
        if is_run(self.folder):
            folders = {self.folder: {}}
        elif self.folder.is_dir():
            folders = folders_of(self.folder)
        before, self._cells = self._cells, {}
        for folder, overrides in folders.items():
            mark = mark_of(folder)  # before reading: what is written meanwhile is read at the next look
            known = before.get(folder)
            self._cells[folder] = known if known and known[0] == mark else (mark, self._read(folder, overrides, known))
        return before != self._cells

    def _read(self, folder: Path, overrides: dict[str, str], known: tuple[Mark, Cell] | None) -> Cell:
        self.unread.pop(folder.name, None)
        try:
            cell = load_cell(folder) if is_run(folder) else Cell(folder, overrides, "waiting")
        except (UserError, OSError) as error:
            self.unread[folder.name] = str(error)
            return known[1] if known else Cell(folder, overrides, "unfinished")
        return replace(cell, overrides=overrides or cell.overrides)  # Hydra may still be writing those in the cell

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, cell in self._cells.values()]

    def results(self) -> Results:
        """The cells as one comparison."""
        sweep = read_sweep(self.folder)
        claims = (sweep["claims"] or []) if "claims" in sweep else None
        return compared(self.cells, claims)

    @property
    def is_listed(self) -> bool:
        """Whether all cells are known, as those of a search are not."""
        return is_run(self.folder) or (self.folder / SWEEP_FILE).is_file()


def mark_of(folder: Path, files: Sequence[str] = RECORD_FILES) -> Mark:
    """What changes where a run writes into its folder. Files that are not there are left out."""
    found: Mark = {}
    for name in files:
        with suppress(OSError):
            stat = (folder / name).stat()
            found[name] = (stat.st_mtime_ns, stat.st_size)
    return found


def last_sign_s(folder: Path) -> float:
    """When the run of this folder wrote last, in seconds of `time.time`; 0 before it has written anything."""
    return max((written_ns for written_ns, _ in mark_of(folder, SIGNS).values()), default=0) / 1e9


def started_again(folder: Path) -> bool:
    """Whether a run has started in this folder after the one that wrote `result.json` had ended."""
    found = mark_of(folder)
    return "config.yaml" in found and RESULT_FILE in found and found["config.yaml"][0] > found[RESULT_FILE][0]


def refuse_what_is_none(folder: Path) -> None:
    """Raise UserError where the folder can never become that of a sweep: a file, or a folder with other things in it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(str(there), "is a file", GIVE)
    if there != folder or is_run(folder):
        return
    inside = sorted(path for path in folder.iterdir() if path.name != "report")
    of_sweep = any(path.name in (SWEEP_FILE, "multirun.yaml") or (path.is_dir() and is_run(path)) for path in inside)
    if inside and not of_sweep:
        sweeps = [str(path) for path in inside if (path / SWEEP_FILE).is_file()]
        raise UserError(str(folder), "holds other files and no sweep", f"Give {sweeps[0]}" if sweeps else GIVE)
