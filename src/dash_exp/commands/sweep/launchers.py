"""Whether a launcher is installed and can do what is asked of it, before it starts anything."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import number

# By the second part of the module of a launcher's class: the package that it needs, and the extra that installs it.
LAUNCHERS = {
    "dash_exp_slurm": ("hydra_submitit_launcher", "slurm"),
    "dash_exp_ray": ("hydra_ray_launcher", "ray"),
    "dash_exp_joblib": ("hydra_joblib_launcher", "joblib"),
}


# Numbers of Ray's launcher: a wrong one would end the sweep after its start. Hydra checks those of the other launchers itself.
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
        raise UserError(
            chosen, "there is no sbatch on this machine", "Start the command on a node of the cluster where jobs are submitted"
        )
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
