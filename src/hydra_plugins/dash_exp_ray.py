"""Cells of a sweep as Ray tasks: the launcher of hydra-ray-launcher, for cells that can be stopped and go on.

It stands in this package because Hydra takes plugins from no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from omegaconf import DictConfig, open_dict, read_write

from dash_exp.commands import beside, sweep
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line

try:
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher
except ImportError:  # it is not installed, as sweep.check_launcher says
    RayLauncher = object


class CellLauncher(RayLauncher):
    """A cell that dies does not end the others, and Ctrl-C and SIGTERM let all of them save."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import ray
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

        assert self.config is not None and self.hydra_context is not None and self.task_function is not None
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            try:
                ray.init(**dict(self.ray_cfg.init))
            except (ConnectionError, ValueError) as error:
                wrong = first_line(str(error)).rstrip(".")
                raise UserError("hydra.launcher.ray.init", wrong, "address=local starts Ray here") from error
        task = beside.Task(self.task_function, self.config, of_command=False)
        cells: list[tuple[Path, Any]] = []
        with process.leaving_on_sigterm():  # Ray has put a handler of its own in its place
            try:
                for number, overrides in enumerate(job_overrides, initial_job_idx):
                    cfg, folder = sweep.cell_config(self.config, overrides, self.hydra_context.config_loader)
                    with read_write(cfg), read_write(cfg.hydra), open_dict(cfg):
                        cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
                    remote = cfg.hydra.launcher.ray.remote  # by the devices of this cell
                    if self.ray_cfg.init.address == "local":  # a cluster may grow
                        check_room(remote, ray.cluster_resources())
                    job = launch_job_on_ray(self.hydra_context, remote, cfg, task, Singleton.get_state())
                    cells.append((folder, job))
                return [self._outcome(*cell) for cell in cells]
            except (KeyboardInterrupt, SystemExit) as error:
                jobs = [job for _, job in cells]
                for job in jobs:
                    ray.cancel(job)
                ray.wait(jobs, num_returns=len(jobs), timeout=beside.GRACE_S)
                print("stopped: the same command goes on", flush=True)
                if isinstance(error, SystemExit):
                    raise SystemExit(process.RESUME_ME) from None  # in place of Ray's status
                raise

    def _outcome(self, folder: Path, job: Any) -> JobReturn:
        import ray

        assert self.config is not None
        try:
            return ray.get(job)
        except ray.exceptions.RayError as error:  # whatever ended the process
            return beside.lost(self.config, f"lost: {folder}: {first_line(str(error))}")


def check_room(remote: DictConfig, resources: Mapping[str, float]) -> None:
    """Raise UserError where a cell asks for more than this machine has: Ray would wait for another."""
    for setting, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        asked, there = remote.get(setting) or 0, resources.get(name, 0)
        if asked > there:
            raise UserError(
                f"hydra.launcher.ray.remote.{setting}={asked:g}",
                f"is more than Ray has on this machine, {there:g}",
                f"Write hydra.launcher.ray.remote.{setting}={there:g}" if there else "Use trainer=cpu",
            )
