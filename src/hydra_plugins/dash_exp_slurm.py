"""Cells of a sweep as Slurm jobs: the launcher of hydra-submitit-launcher, for cells that can be stopped and resumed.

It is in this package because Hydra finds plugins only here.
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from omegaconf import DictConfig, open_dict, read_write

from dash_exp.commands.sweep import server_task
from dash_exp.commands.sweep.cells import cell_config
from dash_exp.commands.sweep.processes import lost
from dash_exp.commands.sweep.progress import progress_line
from dash_exp.commands.sweep.server_nodes import ServerNodes, of_cell
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.core.words import first_line
from dash_exp.distributed import place
from dash_exp.results.cells import cells_of
from dash_exp.results.run_folder import SWEEP_FILE, read_result

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # it is not installed, which sweep.launchers reports
    SlurmLauncher = object

JOB_FILE = "slurm_job"  # of a run folder: the id of the job that was submitted last for it
POLL_S = 2.0
ASK_SLURM_EVERY = 5  # polls


class CellLauncher(SlurmLauncher):
    """Submits the cells that are not done and waits until all have left the queue, for whatever reason.

    Three things differ from the launcher that it extends. Cells that are done need no job. A cell whose job, of the same
    command given before, is still in the queue is waited for and not submitted again. And a job that ends without a result
    (scancel, a node that failed) does not end the waiting for the others.
    """

    def __call__(
        self, overrides: Any, key: str, number: int, job_id: str, state: Any, servers: ServerNodes | None = None
    ) -> JobReturn:
        """The job: exits on SIGTERM from its start, and saves before submitit requeues it. `servers`: what `of_cell` gives."""
        if servers is not None:
            server_task.serve_where_asked(servers)
        with process.leaving_on_sigterm(), saved_before_requeue(), server_task.of_first(servers), of_several_tasks():
            return super().__call__(overrides, key, number, job_id, state)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from submitit.slurm.slurm import SlurmJob

        assert self.config is not None and self.hydra_context is not None
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        loader = self.hydra_context.config_loader
        cells = [cell_config(self.config, overrides, loader) for overrides in job_overrides]
        returns: dict[int, JobReturn] = {}
        jobs: dict[int, SlurmJob[JobReturn]] = {}
        queue = in_queue()
        for i, (cfg, folder) in enumerate(cells):
            before = folder / JOB_FILE
            if read_result(folder).get("status") == "done":
                returns[i] = self._here(cfg, initial_job_idx + i)  # skips it and returns its result
            elif before.is_file() and before.read_text(encoding="utf-8").strip() in queue:
                jobs[i] = SlurmJob(self.params["submitit_folder"], before.read_text(encoding="utf-8").strip())
        new = [i for i in range(len(cells)) if i not in returns and i not in jobs]
        asked = {i: (list(job_overrides[i]), initial_job_idx + i, of_cell(cells[i][0])) for i in new}
        for i, job in self._submit(asked).items():
            cells[i][1].mkdir(parents=True, exist_ok=True)
            write_whole(cells[i][1] / JOB_FILE, f"{job.job_id}\n")
            jobs[i] = job
        for i, job in sorted(jobs.items()):
            print(f"job {job.job_id}{'' if i in new else ', submitted before'}: {cells[i][1]}", flush=True)
        try:
            returns |= self._wait(jobs)
        except (KeyboardInterrupt, SystemExit):
            print("the jobs continue; the same command waits for them again, scancel ends them", flush=True)
            raise
        return [returns[i] for i in range(len(cells))]

    def _here(self, cfg: DictConfig, number: int) -> JobReturn:
        """A cell in this process."""
        assert self.hydra_context is not None and self.task_function is not None
        with read_write(cfg), read_write(cfg.hydra), open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return run_job(self.task_function, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context)

    def _submit(self, cells: Mapping[int, tuple[list[str], int, ServerNodes | None]]) -> dict[int, Any]:
        """One array of jobs. Raises UserError where sbatch refuses it."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit.core.utils import FailedJobError

        if not cells:
            return {}
        params = dict(self.params)
        executor = submitit.AutoExecutor(
            params.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout")
        )
        shared = BaseQueueConf.__dataclass_fields__
        given = {k if k in shared else f"slurm_{k}": v for k, v in params.items() if v is not None}
        executor.update_parameters(**given)
        arguments = [
            (overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state(), servers)
            for overrides, number, servers in cells.values()
        ]
        try:
            return dict(zip(cells, executor.map_array(self, *zip(*arguments, strict=True)), strict=True))
        except FailedJobError as error:
            said = first_line(str(error.__cause__ or error))
            raise UserError("sbatch", f"refuses the jobs ({said})", "Change hydra.launcher.partition, account, ...") from error

    def _wait(self, jobs: Mapping[int, Any]) -> dict[int, JobReturn]:
        """What the jobs returned, when all have ended."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        returns: dict[int, JobReturn] = {}
        polls = 0
        while len(returns) < len(jobs):
            time.sleep(POLL_S)
            polls += 1
            # Slurm is asked first: a job that writes its result in the meantime has ended as well
            queue = in_queue() if polls % ASK_SLURM_EVERY == 0 else None
            for i, job in jobs.items():
                ended = job.paths.result_pickle.is_file() or (queue is not None and job.job_id not in queue)
                if i not in returns and ended:
                    returns[i] = self._outcome(job)
                    if (folder / SWEEP_FILE).is_file():
                        print(progress_line(cells_of(folder), max(1, len(jobs) - len(returns))), flush=True)
        return returns

    def _outcome(self, job: Any) -> JobReturn:
        """A job without a result is a failure to a search. In a list of cells the ledger has the status of each."""
        try:
            if job.paths.result_pickle.is_file():
                return job.task(0).result()  # the first rank's
            wrong = f"job {job.job_id} has left the queue without a result"
        except Exception as error:  # whatever ended the job
            wrong = f"job {job.job_id}: {first_line(str(error))}"
        return lost(self.config, f"{wrong}; its log: {job.paths.stdout}")


@contextmanager
def of_several_tasks() -> Iterator[None]:
    """Where a cell has a Slurm task for each rank, the first runs the cell and the others follow it (`rank.taking_part`)."""
    if place.size() == 1:
        yield
        return
    with process.importing():
        from dash_exp.commands import rank
    with rank.taking_part():
        yield


@contextmanager
def saved_before_requeue() -> Iterator[None]:
    """SIGUSR2, which Slurm sends before the time limit, is handled like SIGTERM: the run saves and exits.

    After that submitit's handler is called, which would have been called at once: it puts the job back into the queue, which
    kills it. The same is done after the SIGTERM that starts a pre-emption: Slurm itself requeues a job that it kills for a
    pre-emption, but not one that exits in the grace period before. After a SIGTERM of scancel the job is over.
    """
    requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
    stopped = False

    def leave(number: int, frame: Any) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise SystemExit(process.RESUME_ME)

    signal.signal(signal.SIGUSR2, leave)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # requeuing sends it
        if stopped or in_grace():
            requeue(signal.SIGUSR2, None)
        raise


def in_grace() -> bool:
    """Whether another job is about to take this job's place, while this one still counts as running."""
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    said = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace").stdout
    return "JobState=RUNNING" in said and bool(re.search(r"PreemptTime=\d", said))


def in_queue() -> set[str]:
    """The ids of the user's jobs that wait, run or are ending, as `12_3` (in an array) or `12`.

    Where Slurm does not answer, as while its controller restarts, it is asked again for some minutes. Then UserError.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    for _ in range(20):
        asked = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if asked.returncode == 0:
            return set(asked.stdout.split())
        time.sleep(15)
    raise UserError("squeue", f"does not answer ({first_line(asked.stderr)})", "Give the same command again when it answers")
