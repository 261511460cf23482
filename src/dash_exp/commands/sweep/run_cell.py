"""One cell of a sweep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.sweep.cells import lists_its_cells
from dash_exp.commands.sweep.finished import finished
from dash_exp.commands.sweep.matched import with_matched_budget
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.results.run_folder import ATTEMPTS_FILE, ENDING, read_result, write_result
from dash_exp.settings.validate import validate

log = logging.getLogger(__name__)

ATTEMPTS = 2  # that ended the process, after which the cell is skipped once, so that the others are run


def run_cell(cfg: DictConfig, run_dir: Path, run: Callable[..., dict[str, Any]]) -> float | None:
    """Run a cell of a sweep, unless it is done, and return its objective.

    A cell that fails writes the reason into `result.json`, and the other cells are run. A sweeper that searches gets the
    exception instead, which counts as a failed trial.
    """
    searches = not lists_its_cells(OmegaConf.create({"hydra": HydraConfig.get()}))
    try:
        validate(cfg)  # of a search; the cells of a list are known to be good
        if finished(run_dir, cfg):
            result = read_result(run_dir)
        else:
            cfg = with_matched_budget(cfg, run_dir, list(HydraConfig.get().overrides.task))
            with attempt(run_dir):
                result = run(cfg, run_dir, in_sweep=True)
        return objective(cfg, result) if searches else None
    except Exception as error:
        result = read_result(run_dir)
        if result.get("status") != "done":  # a run that is done stays done, whatever failed after it
            status = ENDING if result.get("status") == ENDING else "failed"  # a trained one is not trained again
            write_result(run_dir, result | {"status": status, "error": f"{type(error).__name__}: {error}"})
        log.error("cell %s failed", run_dir.name, exc_info=not isinstance(error, UserError))
        print(f"failed: {run_dir}: {first_line(str(error))}", flush=True)
        if searches:
            raise
        return None


@contextmanager
def attempt(run_dir: Path) -> Iterator[None]:
    """Around one attempt at a cell. Raises RuntimeError, instead of trying again, where each attempt before ended the process.

    The count stays on the disk only where the process was killed. A snapshot sets it back.
    """
    file = run_dir / ATTEMPTS_FILE
    before = len(file.read_text(encoding="utf-8")) if file.is_file() else 0
    if before >= ATTEMPTS:
        file.unlink()
        raise RuntimeError(f"the process ended in this cell {before} times (out of memory?); the same command tries it again")
    file.write_text("x" * (before + 1), encoding="utf-8")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def objective(cfg: DictConfig, result: dict[str, Any]) -> float:
    """The number that is returned to a search."""
    value = result.get(cfg.objective)
    if not isinstance(value, int | float):
        numbers = ", ".join(k for k, v in result.items() if isinstance(v, float) and k.endswith("final") and "/low/" not in k)
        raise UserError(f"objective={cfg.objective}", "is not a number of result.json", f"Use one such as {numbers}")
    return float(value)
