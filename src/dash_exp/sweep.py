"""Sweeps: every cell is checked before the first one starts, and a cell's folder is named by its overrides."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from dash_exp.errors import UserError
from dash_exp.overrides import number_of_kl
from dash_exp.validate import validate


class CheckCells(Callback):
    """A Hydra callback. A sweep with a bad cell ends here, with a message and before any work.

    It leaves by SystemExit because Hydra turns any other exception of a callback into a warning.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            cells = self.cells(config)
            for overrides in cells:
                self._check(overrides, kwargs.get("config_name"))
        except UserError as error:
            sys.exit(f"error: {error}")
        except HydraException:
            return  # the sweeper composes the cells as well, and will raise it as an error
        print(f"sweep of {len(cells)} cells into {config.hydra.sweep.dir}", flush=True)

    @staticmethod
    def cells(config: DictConfig) -> list[list[str]]:
        """The overrides of each cell, as Hydra's own sweeper will make them."""
        params = config.hydra.sweeper.get("params") or {}
        with open_dict(config.hydra.sweeper):
            config.hydra.sweeper.params = dict(p.split("=", 1) for p in number_of_kl(f"{k}={v}" for k, v in params.items()))
        arguments = [f"{k}={v}" for k, v in config.hydra.sweeper.params.items()]
        arguments += [str(argument) for argument in config.hydra.overrides.task]
        overrides = OverridesParser.create().parse_overrides(arguments)
        if any(o.is_sweep_override() and not o.is_discrete_sweep() for o in overrides):
            return []  # ranges that a search draws from have no list of cells
        return BasicSweeper.split_arguments(overrides, None)[0]

    @staticmethod
    def _check(overrides: list[str], config_name: str | None) -> None:
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration(config_name, overrides, run_mode=RunMode.RUN)
        with open_dict(cfg):
            del cfg["hydra"]
        try:
            validate(cfg)
        except UserError as error:
            raise UserError(f"cell {','.join(overrides)}: {error.where}", error.wrong, error.right) from error


def finished(run_dir: Path, cfg: DictConfig) -> bool:
    """Whether `run_dir` holds this very run, done. Another finished run there is never overwritten: UserError."""
    try:
        result = json.loads((run_dir / "result.json").read_text())
    except (OSError, ValueError):
        return False
    if result.get("status") != "done":
        return False
    if (run_dir / "config.yaml").read_text() != OmegaConf.to_yaml(cfg, resolve=True):
        raise UserError(str(run_dir), "holds a finished run with other settings", "Choose another name=..., or remove it")
    print(f"done before, skipped: {run_dir} (remove the folder to run it again)", flush=True)
    return True


def cell_name(override_dirname: str) -> str:
    """A folder name from a cell's overrides: slashes replaced, and long ones cut and told apart by a hash."""
    name = override_dirname.replace("/", "_") or "cell"
    if len(name) <= 150:
        return name
    return f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:9]}"
