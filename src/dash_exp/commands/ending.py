"""The end of a run, when all its numbers are known: the picture, the tracker, the snapshots, and last of all the word "done".

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

log = logging.getLogger(__name__)


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
    tracker = start_tracker(cfg, run_dir, in_sweep)
    for row in rows if tracker else ():
        step = int(row["step"] or 0)
        tracker.log_metrics({k: v for k, v in row.items() if v is not None} | {"step": step}, step=step)
    return end(run_dir, read_result(run_dir), rows, tracker)


def end(run_dir: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tracker: Any) -> dict[str, Any]:
    """From the numbers of a trained run (`rows`: those of `metrics.csv`) to its finished folder. Returns the result."""
    done = {k: v for k, v in result.items() if k != "error"} | {"status": "done"}
    try:
        plot_curves(rows, {phase: result[f"time/{phase}_s"] for phase in PHASES}, run_dir / "curves.png")
        finish_tracker(tracker, run_dir, done)
        remove_snapshots(run_dir)
        write_result(run_dir, done)
    except OSError as error:
        if found := files.trouble(error):
            raise UserError(found[0] or str(run_dir), found[1], f"{found[2]}; the same command then ends the run") from error
        raise
    print(f"{result_table(done)}\nrun folder {run_dir}", flush=True)
    return done


def start_tracker(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> Any:
    """The logger of this run for Lightning; None without one."""
    return cfg.logger.wandb and made(cfg, "logger.wandb")(
        run_dir=run_dir,
        name=run_dir.name if in_sweep else f"{cfg.name}/{run_dir.name}",
        group=cfg.name if in_sweep else None,
        settings=OmegaConf.to_container(cfg, resolve=True),
    )


def finish_tracker(tracker: Any, run_dir: Path, result: Mapping[str, Any]) -> None:
    """Give the tracker, if there is one, the record of the run, and close it. What it cannot take does not fail the run."""
    if not tracker:
        return
    from dash_exp.results.wandb_logger import finish  # wandb is loaded only where it is used

    try:
        finish(tracker, run_dir, result)
    except Exception as error:
        if files.trouble(error):
            raise
        log.warning("W&B does not have all of this run (%s); the run folder has", error_line(error))
