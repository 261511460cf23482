"""The end of a run, when all its numbers are known: the picture, the trackers, the snapshots, and last of all the word "done".

A run that is killed here has its numbers in `result.json`, with the status ENDING. The same command does what is left, without
a model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.parts import made
from dash_exp.core import files, process
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import PHASES, read_metrics
from dash_exp.core.words import error_line
from dash_exp.results.cells import load_cell
from dash_exp.results.plots import plot_curves
from dash_exp.results.run_folder import ENDING, read_result, remove_snapshots, same_numbers, write_result
from dash_exp.results.summary import result_table
from dash_exp.results.trackers import Tracker

log = logging.getLogger(__name__)

TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard", "mlflow": "MLflow", "trackio": "Trackio"}  # by the section of `logger`


def is_left(run_dir: Path, cfg: DictConfig) -> bool:
    """Whether a run of these settings was killed in its end."""
    if not cfg.resume or read_result(run_dir).get("status") != ENDING:
        return False
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return same_numbers(load_cell(run_dir).config) == same_numbers(settings)


def resume(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> dict[str, Any]:
    """Do what is left of the end of such a run, and return its result."""
    print(f"trained before: what is left of the end of {run_dir} is done", flush=True)
    process.stay_to_the_end()
    rows = read_metrics(run_dir / "metrics.csv")
    trackers = start_trackers(cfg, run_dir, in_sweep)
    for row in rows if trackers else ():
        step = int(row["step"] or 0)
        for tracker in trackers:
            tracker.log_metrics({k: v for k, v in row.items() if v is not None} | {"step": step}, step=step)
    return end(run_dir, read_result(run_dir), rows, trackers)


def end(
    run_dir: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], trackers: Sequence[Tracker]
) -> dict[str, Any]:
    """From the numbers of a trained run (`rows`: those of `metrics.csv`) to its finished folder. Returns the result."""
    done = {k: v for k, v in result.items() if k != "error"} | {"status": "done"}
    try:
        plot_curves(rows, {phase: result[f"time/{phase}_s"] for phase in PHASES}, run_dir / "curves.png")
        finish_trackers(trackers, run_dir, done)
        remove_snapshots(run_dir)
        write_result(run_dir, done)
    except OSError as error:
        if found := files.trouble(error):
            raise UserError(found[0] or str(run_dir), found[1], f"{found[2]}; the same command then ends the run") from error
        raise
    print(f"{result_table(done)}\nrun folder {run_dir}", flush=True)
    return done


def start_trackers(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> list[Tracker]:
    """The loggers of this run for Lightning. One that cannot be started is left out, and a line says so."""
    given = {
        "run_dir": run_dir,
        "name": run_dir.name if in_sweep else f"{cfg.name}/{run_dir.name}",
        "group": cfg.name if in_sweep else None,
        "settings": OmegaConf.to_container(cfg, resolve=True),
    }
    found = []
    for key, title in TITLES.items():
        if cfg.logger.get(key) is None:
            continue
        try:
            found.append(Tracker(title, made(cfg, f"logger.{key}")(**given)))
        except UserError:
            raise
        except Exception as error:  # training needs none of them
            log.warning("%s cannot be used (%s): it does not get this run; the run folder has all", title, error_line(error))
    return found


def finish_trackers(trackers: Sequence[Tracker], run_dir: Path, result: Mapping[str, Any]) -> None:
    """Give each tracker the record of the run, and close it. What one of them cannot take does not fail the run."""
    for tracker in trackers:
        tracker.finish(run_dir, result)
