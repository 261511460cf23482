"""The cells of a sweep before the first one starts: their configurations, their list, and checks of them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from dash_exp.commands.sweep import server_nodes
from dash_exp.commands.sweep.finished import finished
from dash_exp.commands.sweep.launchers import check_launcher, check_sweeper
from dash_exp.commands.sweep.matched import wanted_baseline
from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.results.run_folder import SWEEP_FILE, overrides_by_key, read_result
from dash_exp.settings import claims
from dash_exp.settings.overrides import number_of_kl
from dash_exp.settings.validate import validate


@dataclass(frozen=True)
class Planned:
    """A cell that will be run."""

    folder: Path
    overrides: list[str]
    cfg: DictConfig
    launcher: dict[str, Any]  # the launcher's settings, which may depend on those of the cell

    def check(self, config: DictConfig) -> None:
        """Raise UserError, with the cell's name, where it cannot be run. `config`: that of the command."""
        try:
            validate(self.cfg)
            server_nodes.check(self.cfg, config)
            finished(self.folder, self.cfg)
        except UserError as error:
            raise UserError(f"cell {','.join(self.overrides)}: {error.where}", error.wrong, error.right) from error


def checked(config: DictConfig) -> list[Planned]:
    """The cells of a sweep, each of which can be run; [] for a search. Raises UserError for the first that cannot."""
    check_launcher(config)
    check_sweeper(config)
    _let_trials_fail(config)
    if overrides_by_key(list(config.hydra.overrides.task)).get("plan", "false").lower() != "false":  # also of a search
        raise _no_plan()
    cells = planned(config)
    if any(cell.cfg.get("plan") for cell in cells):
        raise _no_plan()
    _check_folders(cells)
    for cell in cells:
        cell.check(config)
    _check_order(cells, config)
    _check_jobs(cells, config)
    _check_claims(cells, config)
    return cells


def _let_trials_fail(config: DictConfig) -> None:
    """Let a search with Optuna go on after failures, as a list of cells does, where the command does not limit their share."""
    given = any("hydra.sweeper.max_failure_rate" in override for override in config.hydra.overrides.hydra)
    if str(config.hydra.sweeper._target_).endswith(".OptunaSweeper"):
        with open_dict(config.hydra.sweeper):
            config.hydra.sweeper._target_ = "hydra_plugins.dash_exp_optuna.Search"
            config.hydra.sweeper.max_failure_rate = config.hydra.sweeper.max_failure_rate if given else 1.0


def _no_plan() -> UserError:
    return UserError(
        "plan=true", "plans a single run, and -m starts a sweep", "Leave -m out, and give the settings of one cell"
    )


def planned(config: DictConfig) -> list[Planned]:
    """The cells as Hydra's own sweeper will create them; [] where the sweeper searches, so that they are not known yet."""
    params = config.hydra.sweeper.get("params") or {}
    with open_dict(config.hydra.sweeper):
        config.hydra.sweeper.params = dict(p.split("=", 1) for p in number_of_kl(f"{k}={v}" for k, v in params.items()))
    if not lists_its_cells(config):
        return []
    arguments = [f"{k}={v}" for k, v in config.hydra.sweeper.params.items()]
    arguments += [str(argument) for argument in config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(arguments)
    if any(o.is_sweep_override() and not o.is_discrete_sweep() for o in parsed):
        return []  # the sweeper refuses it
    loader = GlobalHydra.instance().config_loader()
    cells = []
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        cfg, folder = cell_config(config, overrides, loader)
        launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
        with open_dict(cfg):
            del cfg["hydra"]
        cells.append(Planned(folder, overrides, cfg, launcher))
    return cells


def write_list(folder: Path, cells: Sequence[Planned]) -> None:
    """`sweep.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"folder": cell.folder.name, "overrides": cell.overrides} for cell in cells]
    study: Any = OmegaConf.to_container(cells[0].cfg.study, resolve=True)
    write_whole(folder / SWEEP_FILE, json.dumps({"claims": study.get("claims"), "cells": listed}, indent=1) + "\n")


def cell_config(config: DictConfig, overrides: Sequence[str], loader: ConfigLoader) -> tuple[DictConfig, Path]:
    """The configuration of a cell as Hydra will create it, `hydra` included, and the cell's folder."""
    cfg = loader.load_sweep_config(config, list(overrides))
    now = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)  # its folder is named by its overrides
        return cfg, Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = now


def lists_its_cells(config: DictConfig) -> bool:
    """Whether the sweeper knows all cells before the first one is run; otherwise it searches."""
    return str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _check_folders(cells: Sequence[Planned]) -> None:
    """Raise UserError where two names differ only in characters that a folder's name cannot have."""
    first: dict[Path, Planned] = {}
    for cell in cells:
        other = first.setdefault(cell.folder, cell)
        if other is not cell:
            both = f"cells {','.join(other.overrides)} and {','.join(cell.overrides)}"
            raise UserError(both, f"would share the folder {cell.folder}", "Write one of the values differently")


def _check_jobs(cells: Sequence[Planned], config: DictConfig) -> None:
    """Raise UserError where cells ask Slurm for different resources: the jobs of one command are one array."""
    if "dash_exp_slurm" not in str(config.hydra.launcher._target_):
        return
    for cell in cells[1:]:
        for key, value in cell.launcher.items():
            if value != cells[0].launcher[key]:
                raise UserError(
                    f"cell {','.join(cell.overrides)}",
                    f"wants hydra.launcher.{key}={value}, and cell {','.join(cells[0].overrides)} {cells[0].launcher[key]}",
                    f"Write hydra.launcher.{key} for all of them, or run them by several commands",
                )


def _check_order(cells: Sequence[Planned], config: DictConfig) -> None:
    """Raise UserError where, with `budget.match`, a cell would start before its baseline is done."""
    ready = {cell.folder for cell in cells if read_result(cell.folder).get("status") == "done"}
    in_turn = str(config.hydra.launcher._target_).endswith(".BasicLauncher")
    for cell in cells:
        wanted = wanted_baseline(cell.cfg, overrides_by_key(cell.overrides))
        if wanted is not None:
            baselines = [c for c in cells if overrides_by_key(c.overrides) == wanted]
            if not any(c.folder in ready for c in baselines):
                raise UserError(
                    f"budget.match={cell.cfg.budget.match}: cell {','.join(cell.overrides)}",
                    "needs its baseline to be done first, and the baseline does not come before it in this sweep",
                    "Name the baseline first and run the cells one after the other (hydra/launcher=basic), "
                    "or run the baseline alone first",
                )
        if in_turn:
            ready.add(cell.folder)


def _check_claims(cells: Sequence[Planned], config: DictConfig) -> None:
    """Raise UserError for a claim on an arm that neither the cells nor the file of the sweep have.

    A command may sweep less than its file: a claim on the rest has no verdict.
    """
    swept: dict[str, dict[str, None]] = {}
    of_file = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    for override in [o for cell in cells for o in cell.overrides] + of_file:
        key, values = claims.values_of(override.lstrip("+"))
        swept.setdefault(key, {}).update(dict.fromkeys(values))
    for i, claim in enumerate(claims.of(cells[0].cfg) if cells else []):
        for side in ("arm", "against"):
            for override in getattr(claim, side):
                key, values = claims.values_of(override)
                missing = [v for v in values if v not in swept.get(key, {})] if override != claims.BASE else []
                if missing:
                    there = ", ".join(f"{key}={value}" for value in swept.get(key, {}))
                    raise UserError(
                        f"study.claims[{i}].{side}",
                        f"no cell of this sweep has {key}={missing[0]}",
                        f"Use {there}" if there else f"Sweep {key}, or use one of {', '.join(swept)}",
                    )
