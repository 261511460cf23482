"""Whether a launcher is installed and can do what is asked of it, before it starts anything."""

from __future__ import annotations

import importlib.util
import shutil
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig

from dash_exp.commands.sweep import server_nodes
from dash_exp.core.addresses import host_and_port, unreachable
from dash_exp.core.errors import UserError
from dash_exp.distributed import place
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
RAY_PORT = 10001  # of Ray's client, where an address has none
ANSWER_S = 5.0

# Numbers of a search.
SEARCH_NUMBERS: dict[str, dict[str, Any]] = {
    "n_trials": {"whole": True, "least": 1},
    "n_jobs": {"whole": True, "least": 1},
    "max_failure_rate": {"least": 0, "most": 1},
}


def check_launcher(config: DictConfig) -> None:
    """Raise UserError where the launcher is not installed, or cannot do what is asked of it."""
    target = str(config.hydra.launcher._target_)
    name = target.split(".")[1]
    chosen = f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}"
    server_nodes.check(config, config)
    if name != "dash_exp_slurm" and config.trainer.num_nodes > 1:
        place.check(config.trainer.devices, config.trainer.num_nodes)
    if name not in LAUNCHERS:
        return
    if place.size() > 1:
        wrong = f"starts processes for the cells, but {place.starter()} has started {place.size()} of this command"
        raise UserError(chosen, wrong, "Leave it out, and the cells run one after the other; or start the command alone")
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
    if extra == "ray":
        for key, limits in RAY_NUMBERS.items():
            number(config, f"hydra.launcher.{key}", **limits)
        _check_address(config.hydra.launcher.ray.init.get("address"))
    if extra == "joblib" and config.hydra.launcher.n_jobs == 0:
        raise UserError("hydra.launcher.n_jobs=0", "runs nothing", "Write how many cells at a time; -1 = one per core")


def check_single(config: DictConfig) -> None:
    """Raise UserError where a single run has a launcher, a sweeper or nodes of servers, which would not be used."""
    for name in ("launcher", "sweeper"):
        if (choice := config.hydra.runtime.choices.get(f"hydra/{name}")) not in (None, "basic"):
            raise UserError(f"hydra/{name}={choice}", "is for the cells of a sweep, and this is a single run", "Add -m")
    if not config.get("plan"):
        server_nodes.refuse(config, "this is a single run")


def check_sweeper(config: DictConfig) -> None:
    """Raise UserError where a search with Optuna asks for what it, or a run, cannot do."""
    if "optuna" not in str(config.hydra.sweeper._target_):
        return
    for key, limits in SEARCH_NUMBERS.items():
        number(config, f"hydra.sweeper.{key}", **limits)
    direction = getattr(config.hydra.sweeper.direction, "name", config.hydra.sweeper.direction)  # it may be an enumeration
    known = ("minimize", "maximize")
    if direction not in known:
        close = get_close_matches(str(direction), known, n=1)
        raise UserError(
            f"hydra.sweeper.direction={direction}",
            "is not a direction; a search has one objective",
            f"Use {close[0] if close else ' or '.join(known)}",
        )


def _check_address(address: str | None) -> None:
    """Raise UserError where no Ray answers at HOST:PORT: `ray.init` would try for minutes without a word."""
    if address in (None, "local", "auto"):
        return
    where = f"hydra.launcher.ray.init.address={address}"
    try:
        host, port = host_and_port(address if "://" in str(address) else f"ray://{address}", "ray")
    except ValueError as error:
        raise UserError(where, f"is not an address: {error}", "Write local, auto or HOST:PORT") from error
    wrong = unreachable(host, port or RAY_PORT, ANSWER_S)
    if wrong:
        raise UserError(where, f"does not answer ({wrong})", "Start Ray there (ray start --head), or write address=local")
    print(f"waiting for Ray at {address}", flush=True)
