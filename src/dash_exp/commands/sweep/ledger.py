"""The Hydra callback around a sweep (`hydra.callbacks.ledger` in conf/config.yaml)."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

import dash_exp.commands.hydra_setup  # noqa: F401  for the processes of launchers, which load this callback
from dash_exp.commands.sweep import cells, taken
from dash_exp.commands.sweep.launchers import check_single
from dash_exp.commands.sweep.progress import progress_line
from dash_exp.core.errors import UserError
from dash_exp.core.files import trouble
from dash_exp.core.words import first_line
from dash_exp.results.cells import Results, cells_of, load
from dash_exp.results.run_folder import SWEEP_FILE, read_result
from dash_exp.results.summary import verdict_lines
from dash_exp.settings import credentials

log = logging.getLogger(__name__)


class Ledger(Callback):
    """A Hydra callback: checks and the list of cells before a sweep, its progress after each cell, its report at the end.

    Its errors are SystemExit, because Hydra turns any other exception of a callback into a warning. `report` names the function
    that writes the report from the results and a folder, None for no report. `plan` names the function that is called with the
    configuration in place of a run with `plan=true`; it exits. `take_from`: folders of sweeps whose done cells are copied.
    """

    def __init__(
        self, report: str | None = None, plan: str = "dash_exp.commands.cli.show_plan", take_from: Sequence[str] = ()
    ) -> None:
        self.report = report
        self.plan = plan
        self.take_from = take_from

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes the configuration into the run folder. With `plan=true` Hydra never writes it."""
        _refuse_secrets(config)
        try:
            check_single(config)
        except UserError as error:
            sys.exit(f"error: {error}")
        if config.get("plan"):
            get_method(self.plan)(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _refuse_secrets(config)
        folder = Path(config.hydra.sweep.dir)
        try:
            planned = cells.checked(config)
        except UserError as error:
            sys.exit(f"error: {error}")
        except HydraException:
            return  # the sweeper composes the cells as well, and raises the same error
        if not planned:  # a search, whose cells are not known yet
            if self.take_from:
                wrong = "names sweeps to copy cells from, and a search has no list of cells"
                sys.exit(f"error: {UserError(taken.FOLDERS, wrong, 'Leave it out')}")
            (folder / SWEEP_FILE).unlink(missing_ok=True)
            print(f"search into {folder}", flush=True)
            return
        try:
            copied, missing = taken.take(planned, self.take_from)
            cells.write_list(folder, planned)
        except UserError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            where, wrong, right = trouble(error) or (str(folder), str(error), "Choose another name=...")
            sys.exit(f"error: {UserError(where or str(folder), wrong, right)}")
        except Exception:  # Hydra would turn it into a warning, and start the cells
            traceback.print_exc()
            sys.exit(1)
        done = sum(read_result(cell.folder).get("status") == "done" for cell in planned) - copied
        before = f", {done} of them done before" if done else ""
        before += f", {copied} taken from {' and '.join(map(str, self.take_from))}" if self.take_from else ""
        print(f"sweep of {len(planned)} cells into {folder}{before}", flush=True)
        for cell, why in missing.items():
            print(f"not taken: {cell} (nearest has {why})", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if config.hydra.mode == RunMode.MULTIRUN and (folder / SWEEP_FILE).is_file():  # a single run is no cell of it
            print(progress_line(cells_of(folder), config.hydra.launcher.get("n_jobs") or 1), flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        there = cells_of(folder) if folder.is_dir() else []
        if not there:
            return
        no_report = self._write_report(folder)
        bad = [cell for cell in there if cell.status != "done"]
        if bad:
            arm = Results(there).arm
            said = [f"  {arm(c)}, seed {c.seed}: {c.status}{f', {first_line(c.error)}' if c.error else ''}" for c in bad]
            many = f"{len(bad)} of {len(there)} cells are not done"
            sys.exit("\n".join([f"error: {many}; the same command tries them again:", *said]))
        if no_report:
            sys.exit(f"error: the report could not be written ({no_report}). Try: python -m dash_exp.report {folder}")

    def _write_report(self, folder: Path) -> str | None:
        """Write the comparison into the sweep's folder. Returns what failed, which must not hide the status of the cells."""
        if self.report is None:
            return None
        try:
            page = get_method(self.report)(load([folder]), folder / "report")
        except Exception as error:
            log.exception("no report")
            return first_line(str(error)) or type(error).__name__
        print("\n".join([*verdict_lines(folder / "report" / "claims.csv"), f"report {page}"]), flush=True)
        return None


def _refuse_secrets(config: DictConfig) -> None:
    try:
        credentials.refuse_settings(OmegaConf.to_container(config, resolve=False))
    except UserError as error:
        sys.exit(f"error: {error}")
