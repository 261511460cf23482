"""Cells that other sweeps have done: they are copied, not run again (`hydra.callbacks.ledger.take_from`).

The sweeps of the paper share runs: its DASH runs with a KL coefficient of 0.04 are an arm of tables 1, 3, 5 and 6.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.sweep.cells import Planned
from dash_exp.commands.sweep.finished import identity
from dash_exp.core.errors import UserError
from dash_exp.core.files import whole_folder, write_whole
from dash_exp.results.cells import Cell, load
from dash_exp.results.run_folder import ATTEMPTS_FILE, ID_FILE, can_resume, flat, read_result, write_result
from dash_exp.settings.run import CHECKPOINTS

FOLDERS = "hydra.callbacks.ledger.take_from"
# What a run is called, and what is asked of it, besides the names in `identity`. None of these changes a number of the run.
ASKED = ("name", "study", "own", "objective", "algo.name")


def done_in(folders: Any) -> list[Cell]:
    """The done cells of these sweeps. Raises UserError for what is no list of sweeps."""
    if isinstance(folders, str) or not isinstance(folders, Sequence):
        raise UserError(f"{FOLDERS}={folders}", "is not a list of folders", f"Write {FOLDERS}=[multirun/NAME]")
    done = [cell for cell in (load(folders).cells if folders else ()) if cell.status == "done" and cell.config]
    if folders and not done:
        raise UserError(f"{FOLDERS}=[{','.join(folders)}]", "has no cell that is done", "Leave it out, or name another sweep")
    return done


def take(planned: Sequence[Planned], done: Sequence[Cell]) -> dict[str, str]:
    """Copy those of the planned cells that are done elsewhere with the same settings. Returns each cell that could have been
    copied, by the overrides that not all of them have, with what is missing for it: "" where it was copied.

    Left out are cells that have begun in this sweep, and those of `budget.match`, whose limit is that of another cell.
    """
    found: dict[str, str] = {}
    for cell in planned if done else []:
        if read_result(cell.folder).get("status") == "done" or can_resume(cell.folder) or cell.cfg.budget.match is not None:
            continue
        missing = {source.folder: _missing(source, cell.cfg) for source in done}
        nearest = min(done, key=lambda source: len(missing[source.folder]))
        if not missing[nearest.folder]:
            _copy(nearest, cell)
        own = [override for override in cell.overrides if any(override not in other.overrides for other in planned)]
        found[",".join(own) or cell.folder.name] = "; ".join(missing[nearest.folder][:3])
    return found


def _numbers(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, with the problems it is tested on, by their dotted keys."""
    return {key: value for key, value in flat(identity(cfg)) if not f"{key}.".startswith(tuple(f"{name}." for name in ASKED))}


def _missing(source: Cell, cfg: DictConfig) -> list[str]:
    """Why `source` is not the run of these settings: its other settings, and weights that it did not keep."""
    was, wanted = _numbers(OmegaConf.create(dict(source.config))), _numbers(cfg)
    other = [f"{key}={was.get(key)}, not {wanted.get(key)}" for key in {**wanted, **was} if was.get(key) != wanted.get(key)]
    kept = cfg.get("checkpoints", CHECKPOINTS)
    return other + [f"no checkpoints/{name} there" for name in kept if not (source.folder / "checkpoints" / name).is_dir()]


def _copy(source: Cell, cell: Planned) -> None:
    """The folder of a done run as that of this cell. It is another run in W&B, where it was logged once."""
    left_out = shutil.ignore_patterns(ID_FILE, ATTEMPTS_FILE, "resume")
    with whole_folder(cell.folder) as new:
        shutil.copytree(source.folder, new, ignore=left_out, dirs_exist_ok=True)
        write_whole(new / "config.yaml", OmegaConf.to_yaml(cell.cfg, resolve=True))
        (new / ".hydra").mkdir(exist_ok=True)
        write_whole(new / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(cell.overrides))
        first = source.result.get("taken_from") or source.folder.resolve().parent.name
        write_result(new, {**source.result, "taken_from": first})
