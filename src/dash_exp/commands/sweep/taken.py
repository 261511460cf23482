"""Cells that other sweeps have done: they are copied, not run again (`hydra.callbacks.ledger.take_from`).

The sweeps of the paper share runs: its DASH runs with a KL coefficient of 0.04 are an arm of tables 1, 3 and 6.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.sweep.cells import Planned
from dash_exp.commands.sweep.finished import differences, identity
from dash_exp.core.errors import UserError
from dash_exp.core.files import whole_folder, write_whole
from dash_exp.core.process import in_use
from dash_exp.results.cells import Cell, load, load_cell, unlisted
from dash_exp.results.run_folder import SCHEME, can_resume, flat, read_result, write_result
from dash_exp.settings.run import CHECKPOINTS

FOLDERS = "hydra.callbacks.ledger.take_from"
# What a run is called, and what is asked of it, besides the names in `identity`. None of these changes a number of the run.
ASKED = ("name", "study", "own", "objective", "algo.name")
# What is copied, besides the weights that the cell asks for. The rest is of the other sweep, as its ids in trackers.
FILES = ("metrics.csv", "problems.csv", "completions", "curves.png", "train.log")


def take(planned: Sequence[Planned], folders: Any) -> tuple[int, dict[str, str]]:
    """Copy those of the planned cells that the sweeps in `folders` have done with the same settings.

    Left out are cells that have begun in this sweep, and those of `budget.match`, whose limit is that of another cell. Returns
    the number of cells that were copied, and what is missing for each of the others, by the overrides that not all cells have.
    Raises UserError for what is no list of sweeps with done cells, and for files that cannot be copied.
    """
    open_cells = [cell for cell in planned if folders and cell.cfg.budget.match is None and not _begun(cell.folder)]
    sources = [(source, _numbers(OmegaConf.create(dict(source.config)))) for source in done_in(folders)] if open_cells else []
    missing: dict[str, str] = {}
    for cell in open_cells:
        wanted, weights = _numbers(cell.cfg), cell.cfg.get("checkpoints", CHECKPOINTS)
        lacks, source = min(((_lacks(s, has, wanted, weights), s) for s, has in sources), key=lambda pair: len(pair[0]))
        if lacks:
            own = [override for override in cell.overrides if any(override not in other.overrides for other in planned)]
            missing[",".join(own) or cell.folder.name] = "; ".join(lacks[:3])
        else:
            _copy(source, cell, weights)
    return len(open_cells) - len(missing), missing


def done_in(folders: Any) -> list[Cell]:
    """The done cells of these sweeps, those of earlier commands as well. Raises UserError where there are none."""
    given = isinstance(folders, Sequence) and not isinstance(folders, str)
    if not given or any(not isinstance(folder, str) or folder.startswith(SCHEME) for folder in folders):
        raise UserError(f"{FOLDERS}={folders}", "is not a list of folders", f"Write {FOLDERS}=[multirun/NAME]")
    listed = load(folders).cells  # UserError for what is no sweep
    others = [load_cell(cell) for folder in folders for cell in unlisted(Path(folder).expanduser())]
    done = [cell for cell in (*listed, *others) if cell.status == "done" and cell.config]
    if not done:
        raise UserError(f"{FOLDERS}=[{','.join(folders)}]", "has no cell that is done", "Leave it out, or name another sweep")
    return done


def _begun(folder: Path) -> bool:
    """Whether this sweep has the cell already, or is at work on it."""
    return read_result(folder).get("status") == "done" or can_resume(folder) or in_use(folder)


def _numbers(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, with the problems it is tested on, by their dotted keys."""
    return {key: value for key, value in flat(identity(cfg)) if not f"{key}.".startswith(tuple(f"{name}." for name in ASKED))}


def _lacks(source: Cell, has: Mapping[str, Any], wanted: Mapping[str, Any], weights: Sequence[str]) -> list[str]:
    """Why `source` is not the wanted run: its other settings, and weights that it did not keep."""
    return differences(has, wanted) + [
        f"no checkpoints/{name} there" for name in weights if not (source.folder / "checkpoints" / name).is_dir()
    ]


def _copy(source: Cell, cell: Planned, weights: Sequence[str]) -> None:
    """The files of a done run as those of this cell."""
    with whole_folder(cell.folder) as new:
        try:
            for name in (*FILES, *(f"checkpoints/{kept}" for kept in weights)):
                if (source.folder / name).is_dir():
                    shutil.copytree(source.folder / name, new / name, copy_function=shutil.copyfile)
                elif (source.folder / name).is_file():
                    shutil.copyfile(source.folder / name, new / name)
        except shutil.Error as error:  # of a folder: a list of what could not be copied, to where, and why
            file, _, why = error.args[0][0]
            raise UserError(str(file), f"cannot be copied ({why})", f"Leave {source.folder.parent} out of {FOLDERS}") from error
        write_whole(new / "config.yaml", OmegaConf.to_yaml(cell.cfg, resolve=True))
        (new / ".hydra").mkdir()  # Hydra writes the rest of it when the cell's turn comes
        write_whole(new / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(cell.overrides))
        first = source.result.get("taken_from") or source.folder.resolve().parent.name
        write_result(new, {**source.result, "taken_from": first})
