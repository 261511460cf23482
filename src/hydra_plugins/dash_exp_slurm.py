"""Cells of a sweep as Slurm jobs: the launcher of hydra-submitit-launcher, for cells that can be stopped and go on.

It stands in this package because Hydra takes plugins from no other.
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

from dash_exp.commands import beside, sweep
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.core.words import first_line
from dash_exp.results.cells import cells_of
from dash_exp.results.run_folder import SWEEP_FILE, read_result

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # it is not installed, as sweep.check_launcher says
    SlurmLauncher = object

JOB_FILE = "slurm_job"  # of a run folder: the id of the job that was submitted last for it
POLL_S = 2.0
ASK_SLURM_EVERY = 5  # polls


class CellLauncher(SlurmLauncher):
    """Submits the cells that are not done and waits until all have left the queue, whichever way.

    Three things differ from the launcher that it is made of: cells that are done need no job; a cell whose job is still in
    the queue, of the same command given before, is waited for and not submitted again; and a job that ends without a
    result (scancel, a node that failed) does not end the waiting for the others.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """The job: leaves on SIGTERM from its first moment, and saves before submitit has it requeued."""
        with process.leaving_on_sigterm(), saved_before_requeue():
            return super().__call__(*args, **kwargs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from submitit.slurm.slurm import SlurmJob

        assert self.config is not None and self.hydra_context is not None
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        loader = self.hydra_context.config_loader
        made = [sweep.cell_config(self.config, overrides, loader) for overrides in job_overrides]
        returns: dict[int, JobReturn] = {}
        jobs: dict[int, SlurmJob[JobReturn]] = {}
        queue = in_queue()
        for i, (cfg, folder) in enumerate(made):
            before = folder / JOB_FILE
            if read_result(folder).get("status") == "done":
                returns[i] = self._here(cfg, initial_job_idx + i)  # which skips it, and has its result
            elif before.is_file() and before.read_text().strip() in queue:
                jobs[i] = SlurmJob(self.params["submitit_folder"], before.read_text().strip())
        new = [i for i in range(len(made)) if i not in returns and i not in jobs]
        for i, job in self._submit({i: (list(job_overrides[i]), initial_job_idx + i) for i in new}).items():
            made[i][1].mkdir(parents=True, exist_ok=True)
            write_whole(made[i][1] / JOB_FILE, f"{job.job_id}\n")
            jobs[i] = job
        for i, job in sorted(jobs.items()):
            print(f"job {job.job_id}{'' if i in new else ', submitted before'}: {made[i][1]}", flush=True)
        try:
            returns |= self._wait(jobs)
        except (KeyboardInterrupt, SystemExit):
            print("the jobs go on; the same command waits for them again, scancel ends them", flush=True)
            raise
        return [returns[i] for i in range(len(made))]

    def _here(self, cfg: DictConfig, number: int) -> JobReturn:
        """A cell in this process."""
        assert self.hydra_context is not None and self.task_function is not None
        with read_write(cfg), read_write(cfg.hydra), open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return run_job(self.task_function, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context)

    def _submit(self, cells: Mapping[int, tuple[list[str], int]]) -> dict[int, Any]:
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
            (overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for overrides, number in cells.values()
        ]
        try:
            return dict(zip(cells, executor.map_array(self, *zip(*arguments, strict=True)), strict=True))
        except FailedJobError as error:
            said = first_line(str(error.__cause__ or error))
            raise UserError("sbatch", f"refuses the jobs ({said})", "Change hydra.launcher.partition, account, ...") from error

    def _wait(self, jobs: Mapping[int, Any]) -> dict[int, JobReturn]:
        """What the jobs came to, when all have ended."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        returns: dict[int, JobReturn] = {}
        polls = 0
        while len(returns) < len(jobs):
            time.sleep(POLL_S)
            polls += 1
            # Slurm is asked first: a job that writes its result meanwhile has ended all the same
            queue = in_queue() if polls % ASK_SLURM_EVERY == 0 else None
            for i, job in jobs.items():
                ended = job.paths.result_pickle.is_file() or (queue is not None and job.job_id not in queue)
                if i not in returns and ended:
                    returns[i] = self._outcome(job)
                    if (folder / SWEEP_FILE).is_file():
                        print(sweep.standing(cells_of(folder), max(1, len(jobs) - len(returns))), flush=True)
        return returns

    def _outcome(self, job: Any) -> JobReturn:
        """A job without a result is a failure to a search; of a list of cells the ledger says what became of each."""
        try:
            if job.paths.result_pickle.is_file():
                return job.results()[0]
            wrong = f"job {job.job_id} has left the queue without a result"
        except Exception as error:  # whatever ended the job
            wrong = f"job {job.job_id}: {first_line(str(error))}"
        return beside.lost(self.config, f"{wrong}; its log: {job.paths.stdout}")


@contextmanager
def saved_before_requeue() -> Iterator[None]:
    """SIGUSR2, which Slurm sends before the time limit, is taken like SIGTERM: the run saves, and leaves.

    Then comes what submitit would have done at once: it puts the job back into the queue, which kills it. So it does after a
    SIGTERM with which a pre-emption begins. Slurm itself brings back a job that it kills for one, but not one that leaves in
    the time of grace before. After a SIGTERM of scancel the job is over.
    """
    requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
    told = False

    def leave(number: int, frame: Any) -> None:
        nonlocal told
        if not told:
            told = True
            raise SystemExit(process.RESUME_ME)

    signal.signal(signal.SIGUSR2, leave)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which comes of the requeuing
        if told or in_grace():
            requeue(signal.SIGUSR2, None)
        raise


def in_grace() -> bool:
    """Whether another job is going to take this job's place, and this one still counts as running."""
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    return "JobState=RUNNING" in said and bool(re.search(r"PreemptTime=\d", said))


def in_queue() -> set[str]:
    """The ids of the user's jobs that wait, run or end, as `12_3` (an array's) or `12`.

    Where Slurm does not answer, as when its controller starts anew, it is asked again for some minutes: UserError then.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    for _ in range(20):
        asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode == 0:
            return set(asked.stdout.split())
        time.sleep(15)
    raise UserError("squeue", f"does not answer ({first_line(asked.stderr)})", "Give the same command again when it does")
