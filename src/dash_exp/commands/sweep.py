"""Sweeps: cells that are checked before the first one starts, that survive each other's failures, and that can be continued.

The ledger of a sweep is its folder: `sweep.json` lists the cells (`plan`), and each cell's `result.json` says what became of
it. So the same command continues a sweep that was stopped, whatever launcher ran it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import operator
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dash_exp.core.errors import UserError
from dash_exp.core.files import trouble, write_whole
from dash_exp.core.process import in_use
from dash_exp.core.words import duration, first_line
from dash_exp.results.cells import Cell, Results, cells_of, load, load_cell
from dash_exp.results.run_folder import (
    ATTEMPTS_FILE,
    SWEEP_FILE,
    flat,
    overrides_by_key,
    read_result,
    same_numbers,
    snapshots,
    write_result,
)
from dash_exp.settings import credentials
from dash_exp.settings.checks import number
from dash_exp.settings.overrides import number_of_kl
from dash_exp.settings.validate import validate

log = logging.getLogger(__name__)

# What `budget.match` fills in, and the quantity of the baseline's `result.json` that it takes.
MATCHED = {"seconds": "time/elapsed_s", "sampled_tokens": "tokens/sampled", "optimizer_steps": "optimizer_steps"}


class Ledger(Callback):
    """A Hydra callback around a sweep: its plan and checks before, where it stands between the cells, its report at the end.

    It leaves by SystemExit because Hydra turns any other exception of a callback into a warning. `report` names the function
    that writes the report from the results and a folder, None for no report; `plan` the one that is called with the
    configuration in place of a run with `plan=true`, and leaves.
    """

    def __init__(self, report: str | None = None, plan: str = "dash_exp.commands.cli.show_plan") -> None:
        self.report = report
        self.plan = plan

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes the configuration into the run folder; with `plan=true` it never does."""
        _refuse_secrets(config)
        if config.get("plan"):
            get_method(self.plan)(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _refuse_secrets(config)
        folder = Path(config.hydra.sweep.dir)
        try:
            check_launcher(config)
            _check_plans_nothing(config)
            cells = plan(config)
            if any(cell.cfg.get("plan") for cell in cells):
                raise NO_PLAN
            _check_folders(cells)
            for cell in cells:
                cell.check()
            _check_order(cells, config)
            _check_jobs(cells, config)
        except UserError as error:
            sys.exit(f"error: {error}")
        except HydraException:
            return  # the sweeper composes the cells as well, and will raise it as an error
        if not cells:  # a search, whose cells are not known yet
            (folder / SWEEP_FILE).unlink(missing_ok=True)
            print(f"search into {folder}", flush=True)
            return
        try:
            write_plan(folder, cells)
        except OSError as error:
            where, wrong, right = trouble(error) or (str(folder), str(error), "Choose another name=...")
            sys.exit(f"error: {UserError(where or str(folder), wrong, right)}")
        done = [cell for cell in cells if read_result(cell.folder).get("status") == "done"]
        before = f", {len(done)} of them done before" if done else ""
        print(f"sweep of {len(cells)} cells into {folder}{before}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if (folder / SWEEP_FILE).is_file():
            print(standing(cells_of(folder), config.hydra.launcher.get("n_jobs") or 1), flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        cells = cells_of(folder) if folder.is_dir() else []
        if not cells:
            return
        trouble = self._write_report(folder)
        bad = [cell for cell in cells if cell.status != "done"]
        if bad:
            arm = Results(cells).arm
            said = [f"  {arm(c)}, seed {c.seed}: {c.status}{f', {first_line(c.error)}' if c.error else ''}" for c in bad]
            many = f"{len(bad)} of {len(cells)} cells are not done"
            sys.exit("\n".join([f"error: {many}; the same command tries them again:", *said]))
        if trouble:
            sys.exit(f"error: the report could not be written ({trouble}). Try: python -m dash_exp.report {folder}")

    def _write_report(self, folder: Path) -> str | None:
        """The comparison, in the sweep's folder; what went wrong with it, which must not hide what the cells came to."""
        if self.report is None:
            return None
        try:
            page = get_method(self.report)(load([folder]), folder / "report")
        except Exception as error:
            log.exception("no report")
            return first_line(str(error)) or type(error).__name__
        print(f"report {page}", flush=True)
        return None


def _refuse_secrets(config: DictConfig) -> None:
    try:
        credentials.refuse_settings(OmegaConf.to_container(config, resolve=False))
    except UserError as error:
        sys.exit(f"error: {error}")


# --- a plan in place of a run ------------------------------------------------------------------------------------------

NO_PLAN = UserError("plan=true", "plans one run, and -m starts a sweep", "Leave -m out, and give the settings of one cell")


def _check_plans_nothing(config: DictConfig) -> None:
    """Raise UserError where a sweep is asked for a plan: also one that searches, whose cells are not known."""
    if overrides_by_key(list(config.hydra.overrides.task)).get("plan", "false").lower() != "false":
        raise NO_PLAN


# --- launchers ---------------------------------------------------------------------------------------------------------

# Of a launcher's class, the second part of its module: the package that it needs, and the extra that brings it.
LAUNCHERS = {
    "dash_exp_slurm": ("hydra_submitit_launcher", "slurm"),
    "dash_exp_ray": ("hydra_ray_launcher", "ray"),
    "dash_exp_joblib": ("hydra_joblib_launcher", "joblib"),
}
# Of Ray's launcher: a wrong one would end the sweep after it has begun. Those of the others Hydra checks itself.
RAY_NUMBERS: dict[str, dict[str, Any]] = {
    "ray.init.num_cpus": {"whole": True, "least": 1, "optional": True},
    "ray.remote.num_cpus": {"above": 0},
    "ray.remote.num_gpus": {"least": 0, "optional": True},
}


def check_launcher(config: DictConfig) -> None:
    """Raise UserError where the launcher is not installed, or cannot do what is asked of it."""
    target = str(config.hydra.launcher._target_)
    name = target.split(".")[1]
    chosen = f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}"
    if name not in LAUNCHERS:
        return
    package, extra = LAUNCHERS[name]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        raise UserError(chosen, "its package is not installed", f"Run `pip install -e '.[{extra}]'`")
    if extra == "slurm" and shutil.which("sbatch") is None:
        raise UserError(chosen, "there is no sbatch on this machine", "Start it on a node of the cluster that submits jobs")
    if extra == "joblib" and config.trainer.accelerator == "gpu" and config.hydra.launcher.n_jobs != 1:
        raise UserError(
            f"{chosen} trainer.accelerator=gpu",
            "would run all cells on the same GPU",
            "Use hydra/launcher=ray, which gives each cell its own",
        )
    for key, limits in RAY_NUMBERS.items() if extra == "ray" else ():
        number(config, f"hydra.launcher.{key}", **limits)
    if extra == "joblib" and config.hydra.launcher.n_jobs == 0:
        raise UserError("hydra.launcher.n_jobs=0", "runs nothing", "Write how many cells at a time; -1 = one per core")


# --- before the first cell ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A cell that is going to be run."""

    folder: Path
    overrides: list[str]
    cfg: DictConfig
    launcher: dict[str, Any]  # its settings, which may follow from those of the cell

    def check(self) -> None:
        """Raise UserError, with the cell's name, where it cannot be run."""
        try:
            validate(self.cfg)
            finished(self.folder, self.cfg)
        except UserError as error:
            raise UserError(f"cell {','.join(self.overrides)}: {error.where}", error.wrong, error.right) from error


def plan(config: DictConfig) -> list[Planned]:
    """The cells as Hydra's own sweeper will make them; [] where the sweeper is one that searches."""
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


def write_plan(folder: Path, cells: Sequence[Planned]) -> None:
    """`sweep.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"folder": cell.folder.name, "overrides": cell.overrides} for cell in cells]
    write_whole(folder / SWEEP_FILE, json.dumps({"cells": listed}, indent=1) + "\n")


def cell_config(config: DictConfig, overrides: Sequence[str], loader: ConfigLoader) -> tuple[DictConfig, Path]:
    """The configuration of a cell as Hydra will make it, `hydra` included, and the folder of the cell."""
    cfg = loader.load_sweep_config(config, list(overrides))
    now = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)  # its folder is named by its overrides
        return cfg, Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = now


def lists_its_cells(config: DictConfig) -> bool:
    """Whether the sweeper knows all cells before the first is run; otherwise it searches."""
    return str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _check_folders(cells: Sequence[Planned]) -> None:
    """Two cells whose names differ in characters alone that no folder can have."""
    first: dict[Path, Planned] = {}
    for cell in cells:
        other = first.setdefault(cell.folder, cell)
        if other is not cell:
            both = f"cells {','.join(other.overrides)} and {','.join(cell.overrides)}"
            raise UserError(both, f"would share the folder {cell.folder}", "Write one of the values in another way")


def _check_jobs(cells: Sequence[Planned], config: DictConfig) -> None:
    """On Slurm the jobs of a command are an array, which asks for the same in each."""
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
    """With `budget.match` a cell's baseline has to be done before the cell starts."""
    ready = {cell.folder for cell in cells if read_result(cell.folder).get("status") == "done"}
    in_turn = str(config.hydra.launcher._target_).endswith(".BasicLauncher")
    for cell in cells:
        wanted = _wanted_baseline(cell.cfg, overrides_by_key(cell.overrides))
        if wanted is not None:
            baselines = [c for c in cells if overrides_by_key(c.overrides) == wanted]
            if not any(c.folder in ready for c in baselines):
                raise UserError(
                    f"budget.match={cell.cfg.budget.match}: cell {','.join(cell.overrides)}",
                    "needs its baseline to be done, and it is not before it in this sweep",
                    "Name the baseline first and run the cells in turn (hydra/launcher=basic), or run the baseline alone first",
                )
        if in_turn:
            ready.add(cell.folder)


# --- one cell ----------------------------------------------------------------------------------------------------------


ATTEMPTS = 2  # in which a cell took its process down, after which the others come first


def run_cell(cfg: DictConfig, run_dir: Path, run: Callable[..., dict[str, Any]]) -> float | None:
    """Run a cell of a sweep, unless it is done, and return its objective.

    A cell that fails leaves its reason in `result.json`, and the others go on; a sweeper that searches gets the exception, and
    decides for itself.
    """
    searches = not lists_its_cells(OmegaConf.create({"hydra": HydraConfig.get()}))
    try:
        if finished(run_dir, cfg):
            result = read_result(run_dir)
        else:
            cfg = with_matched_budget(cfg, run_dir, list(HydraConfig.get().overrides.task))
            with attempt(run_dir):
                result = run(cfg, run_dir, in_sweep=True)
        return objective(cfg, result) if searches else None
    except Exception as error:
        result = read_result(run_dir)
        if result.get("status") != "done":  # what is done stays, whatever came after it
            write_result(run_dir, result | {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        if searches:
            raise
        log.error("cell %s failed", run_dir.name, exc_info=not isinstance(error, UserError))
        print(f"failed: {run_dir}: {first_line(str(error))}", flush=True)
        return None


@contextmanager
def attempt(run_dir: Path) -> Iterator[None]:
    """Around one attempt at a cell. Raises RuntimeError instead of trying once more what took its process down each time.

    The count stays on the disk only where the process came to no end of its own; a snapshot on the way sets it back.
    """
    file = run_dir / ATTEMPTS_FILE
    before = len(file.read_text()) if file.is_file() else 0
    if before >= ATTEMPTS:
        file.unlink()
        raise RuntimeError(f"the process ended in this cell {before} times (out of memory?); the same command tries it again")
    file.write_text("x" * (before + 1))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def check_alone(cfg: DictConfig) -> None:
    """Raise UserError for what only a cell of a sweep can have."""
    if cfg.budget.match is not None:
        raise UserError(
            f"budget.match={cfg.budget.match}",
            "stops an arm of a sweep where the baseline stopped, and this is a run alone",
            "Make it a sweep (-m), or give a limit such as budget.seconds=100",
        )


def finished(run_dir: Path, cfg: DictConfig) -> bool:
    """Whether `run_dir` holds this very run, done. Another finished run there is never overwritten: UserError."""
    if read_result(run_dir).get("status") != "done":
        _check_stopped(run_dir, cfg)
        return False
    if not load_cell(run_dir).config:
        return False  # it is torn, so nobody knows what was done
    if _settings(OmegaConf.load(run_dir / "config.yaml")) != _settings(cfg):
        raise UserError(str(run_dir), "holds a finished run with other settings", "Choose another name=..., or remove it")
    return True


def _check_stopped(run_dir: Path, cfg: DictConfig) -> None:
    """Raise UserError where a run of other settings was stopped that could go on: this one would take its place."""
    before = load_cell(run_dir).config
    if cfg.get("resume") and before and snapshots(run_dir):
        was, now = (dict(flat(same_numbers(_settings(c)))) for c in (OmegaConf.create(dict(before)), cfg))
        differ = [f"{key}={now.get(key)}, not {was.get(key)}" for key in {**now, **was} if now.get(key) != was.get(key)]
        if differ:
            raise UserError(
                str(run_dir),
                f"holds a run that was stopped and can go on, with other settings ({'; '.join(differ[:3])})",
                "Give it these settings, or choose another name=...; resume=false begins anew in its place",
            )


def run_folder(parent: str, new: str, *, _root_: DictConfig) -> str:
    """For the configuration, as `${run_folder:outputs/NAME,TIME}`: the newest run of this configuration in `parent` that was
    stopped and can go on, or else the new folder. With `resume=false` always the new one.
    """
    try:
        task = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        settings: Any = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException:
        return f"{parent}/{new}"  # `validate` says what is wrong
    if settings.get("resume"):
        for folder in sorted(Path(parent).glob("*/"), reverse=True):
            if snapshots(folder) and not in_use(folder):
                cell = load_cell(folder)
                if cell.status != "done" and same_numbers(cell.config) == same_numbers(settings):
                    return str(folder)
    return f"{parent}/{new}"


def _settings(cfg: Any) -> Any:
    """What makes a run this very run: everything, but not where a matched budget turned out to end, or how it went on."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    match = (settings.get("budget") or {}).get("match")
    if match is not None:
        settings["budget"] = {"match": match}
    return {k: v for k, v in settings.items() if k not in ("resume", "resume_every")}


def objective(cfg: DictConfig, result: dict[str, Any]) -> float:
    """The number that a search gets back."""
    value = result.get(cfg.objective)
    if not isinstance(value, int | float):
        numbers = ", ".join(k for k, v in result.items() if isinstance(v, float) and k.endswith("final") and "/low/" not in k)
        raise UserError(f"objective={cfg.objective}", "is no number of result.json", f"Use one such as {numbers}")
    return float(value)


def with_matched_budget(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """With `budget.match`, the limit that the baseline of this cell reached; the baseline itself has none."""
    wanted = _wanted_baseline(cfg, overrides_by_key(overrides))
    if wanted is None:
        return cfg
    done = [c for c in cells_of(run_dir.parent) if c.status == "done" and dict(c.overrides) == wanted]
    if not done:
        raise UserError(
            f"budget.match={cfg.budget.match}",
            f"the baseline {','.join(f'{k}={v}' for k, v in wanted.items())} is not done",
            "Give the same command again when it is",
        )
    cfg = cfg.copy()
    cfg.budget[cfg.budget.match] = done[0].result[MATCHED[cfg.budget.match]]
    return cfg


def _wanted_baseline(cfg: DictConfig, overrides: dict[str, str]) -> dict[str, str] | None:
    """The overrides of the baseline that a cell has to be matched with; None where it is one, or nothing is matched."""
    if cfg.budget.match is None:
        return None
    baseline = overrides_by_key(list(cfg.study.baseline))
    wanted = overrides | baseline
    return None if wanted == overrides else wanted


# --- between the cells and after them ----------------------------------------------------------------------------------


def standing(cells: Sequence[Cell], at_once: int) -> str:
    """`sweep: 3 of 12 cells done, 1 failed; about 12:30 left`. `at_once` cells run at a time (-1: one per core)."""
    at_once = at_once if at_once > 0 else os.cpu_count() or 1
    count = {status: sum(cell.status == status for cell in cells) for status in ("done", "failed", "stopped")}
    bad = "".join(f", {count[status]} {status}" for status in ("failed", "stopped") if count[status])
    left = left_s(cells) / at_once
    return f"sweep: {count['done']} of {len(cells)} cells done{bad}" + (f"; about {duration(left)} left" if left else "")


def left_s(cells: Sequence[Cell]) -> float:
    """Seconds that the cells that have not begun will take, one after the other: as long as those that differ in the seed
    alone took on average, or else as those that are done.
    """

    def arm(cell: Cell) -> frozenset[tuple[str, str]]:
        return frozenset((k, v) for k, v in cell.overrides.items() if k != "seed")

    done = [cell for cell in cells if cell.status == "done"]
    seconds = 0.0
    for cell in cells:
        if cell.status in ("waiting", "unfinished") and done:
            alike = [c for c in done if arm(c) == arm(cell)] or done
            seconds += sum(c.result["time/total_s"] for c in alike) / len(alike)
    return seconds


def cell_name(override_dirname: str) -> str:
    """A folder name from a cell's overrides: slashes replaced, and long ones cut and told apart by a hash."""
    name = override_dirname.replace("/", "_") or "cell"
    if len(name) <= 150:
        return name
    return f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:9]}"


def gpus(accelerator: str, devices: int) -> int | None:
    """GPUs that a launcher asks for, for a cell; None with trainer=cpu."""
    return devices if accelerator == "gpu" else None


def prepare_hydra() -> None:
    """The functions that the configuration calls, as `${cell:...}`; and no warning that a launcher's settings are checked by
    the types that its package declares for them.
    """
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("gpus", gpus, replace=True)
    OmegaConf.register_new_resolver("times", operator.mul, replace=True)
    OmegaConf.register_new_resolver("asset", lambda name: str(Path(__file__).parents[1] / "assets" / name), replace=True)
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


prepare_hydra()  # not in the command alone: a process of a launcher loads this module, for the callback, and not the command's
