"""Sweeps on a cluster: a real Slurm of one node, joblib and Ray, with jobs that are cancelled, pre-empted and out of time."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import needs
import pytest
import slurm
from conftest import ROOT, SMALL, composed, environment, sweep_settings
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf
from runs import same

from dash_exp.commands import run
from dash_exp.commands.sweep import cells, launchers, processes
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.results.cells import Cell, cells_of

SMALLER = [*SMALL, "eval.every=100", "hydra.callbacks.ledger.report=null"]
pytestmark = pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher")
RESUMED = "(resume=false starts from the beginning)"
JOBS = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    needs.require("slurm")
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), grace_s=60) as env:
        yield env


@pytest.fixture
def command(tmp_path):
    """`python train.py -m ...` in the background, what it says in a file of the folder; ended with the test."""
    started: list[subprocess.Popen] = []

    def start(log: str, *arguments: str, env: dict[str, str]) -> subprocess.Popen:
        with (tmp_path / log).open("w") as out:
            program = [sys.executable, str(ROOT / "train.py"), "-m", *arguments]
            variables = environment(tmp_path) | env
            started.append(
                subprocess.Popen(
                    program, cwd=tmp_path, env=variables, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def same_as_alone(cell: Cell, alone: Path, *overrides: str) -> None:
    """As a run of this process, which nothing stops."""
    run.run(composed(*SMALLER[:-1], *overrides, *(f"{k}={v}" for k, v in cell.overrides.items())), alone)
    same(cell.folder, alone)


def test_a_sweep_on_slurm_comes_to_its_end_whatever_takes_its_jobs(cluster, command, tmp_path):
    """Two cells, the first one of two ranks. The command is interrupted and given again; the job of the ranks is cancelled; the
    other one is told that its time is up, and later has to make room for another user's. Then the cancelled one goes on.
    """
    sweep_ = [*SMALLER, "algo=dash", "trainer=ddp,cpu", "steps=8", *JOBS]
    folder = tmp_path / "multirun" / "small"

    def ask(*words: str) -> str:
        return slurm.ask(cluster, *words)

    def log(name: str) -> str:
        return (tmp_path / name).read_text()

    def at_step(step: int, cell: int) -> bool:
        return (cells_of(folder)[cell].folder / "completions" / f"step_{step:05d}.jsonl").exists()

    first = command("first", *sweep_, env=cluster)
    slurm.wait_for(lambda: log("first").count("job ") == 2)
    array = log("first").partition("job ")[2].partition("_")[0]
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130, log("first")
    assert "the jobs continue; the same command waits for them again" in log("first")

    second = command("second", *sweep_, env=cluster)
    slurm.wait_for(lambda: at_step(2, cell=1))
    ask("scancel", "--signal=USR2", f"{array}_1.0")
    slurm.wait_for(lambda: at_step(2, cell=0))
    ask("scancel", f"{array}_0")
    log_of_other = folder / ".submitit" / f"{array}_1" / f"{array}_1_0_log.out"
    slurm.wait_for(lambda: slurm.start_waiting(cluster) or RESUMED in log_of_other.read_text())
    os.kill(process_in(cells_of(folder)[1].folder), signal.SIGSTOP)  # Slurm lets it go on when it ends it
    ask("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait_for(lambda: slurm.start_waiting(cluster) or second.poll() is not None)
    assert second.returncode == 1, log("second")
    assert log("second").count(", submitted before: ") == 2
    assert "1 of 2 cells are not done; the same command tries them again" in log("second")
    assert f"job {array}_0 has left the queue without a result" in log("second")
    assert [c.status for c in cells_of(folder)] == ["stopped", "done"]

    third = command("third", *sweep_, env=cluster)
    assert third.wait(120) == 0, log("third")
    assert "sweep of 2 cells into multirun/small, 1 of them done before" in log("third")
    assert log("third").count("job ") == 1
    found = cells_of(folder)
    job = (found[0].folder / "slurm_job").read_text().strip()
    logs = {path.parent.name: path.read_text() for path in (folder / ".submitit").glob("*/*.out")}
    assert {name: text.count(RESUMED) for name, text in logs.items()} == {f"{array}_0": 0, f"{array}_1": 2, job: 1}
    assert "Caught signal SIGUSR2" in logs[f"{array}_1"]
    for i, cell in enumerate(found):
        assert cell.status == "done"
        same_as_alone(cell, tmp_path / str(i), "steps=8")


def test_what_slurm_refuses_is_told(cluster, command, tmp_path):
    refused = command("log", *SMALLER, *JOBS, "hydra.launcher.partition=nowhere", env=cluster)
    assert refused.wait(60) == 1
    text = (tmp_path / "log").read_text()
    assert "error: sbatch: refuses the jobs" in text
    assert "invalid partition specified: nowhere" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("launcher", "ended_by", "says"),
    [
        (["hydra/launcher=joblib"], signal.SIGTERM, "sweep: 0 of 2 cells done, 1 stopped"),
        (
            ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_cpus=1"],
            signal.SIGKILL,
            "lost: multirun/small/",
        ),
    ],
    ids=["joblib", "ray"],
)
def test_cells_side_by_side_go_on_after_they_were_ended(launcher, ended_by, says, command, tmp_path):
    """One cell alone, which is nothing to the other; then that one by Ctrl-C on the terminal of the command. Their numbers are
    those of a run alone.
    """
    steps = ["steps=40", "resume_every=2"]
    sweep_ = [*SMALLER, "algo=dash", "kl=0,0.04", *steps, *launcher]
    first = command("first", *sweep_, env={})

    def found() -> list[Cell]:
        return cells_of(tmp_path / "multirun" / "small")

    def log(name: str) -> str:
        return (tmp_path / name).read_text()

    standing: dict[int, int] = {}  # processes of cells

    def both_stand() -> bool:
        """After three steps, and long before its last one."""
        assert first.poll() is None, log("first")
        for i, cell in enumerate(found() if "sweep of 2 cells" in log("first") else []):
            if i not in standing and (cell.folder / "completions" / "step_00003.jsonl").exists():
                standing[i] = process_in(cell.folder)
                os.kill(standing[i], signal.SIGSTOP)
        return len(standing) == 2

    slurm.wait_for(both_stand)
    ended, other = standing[0], standing[1]
    os.kill(ended, ended_by)
    os.kill(ended, signal.SIGCONT)
    slurm.wait_for(lambda: says in log("first"))
    os.killpg(first.pid, signal.SIGINT)
    os.kill(other, signal.SIGCONT)
    assert first.wait(60) == 130, log("first")
    assert "Traceback" not in log("first")
    assert found()[1].status == "stopped"
    assert process_in(found()[1].folder) == 0
    assert command("second", *sweep_, env={}).wait(120) == 0, log("second")
    resumed_after = [int(step) for step in re.findall(r"resumes after outer step (\d+) \(", log("second"))]
    assert len(resumed_after) == 2
    assert max(resumed_after) < 40
    for i, cell in enumerate(found()):
        assert cell.status == "done"
        same_as_alone(cell, tmp_path / str(i), *steps)


def test_a_search_is_told_of_a_cell_that_has_left():
    """It needs a number; a list of cells has its ledger."""

    def leave(cfg):
        raise SystemExit(process.RESUME_ME)

    assert processes.Task(leave, sweep_settings(), of_command=False)(None) is None
    assert processes.lost(sweep_settings(), "killed").status == JobStatus.COMPLETED
    search = sweep_settings("hydra/sweeper=optuna")
    with pytest.raises(RuntimeError, match="was stopped"):
        processes.Task(leave, search, of_command=False)(None)
    with pytest.raises(RuntimeError, match="killed"):
        _ = processes.lost(search, "killed").return_value


def process_in(folder: Path) -> int:
    """The id of the process that holds the lock of a run folder; 0 without one."""
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if file.readlink() == folder / process.LOCK_FILE:
                return int(file.parts[2])
    return 0


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "gpus", "others"),
    [
        ("submitit_slurm", "gpus_per_node", {"cpus_per_task": 8, "mem_gb": 32}),
        ("ray", "ray.remote.num_gpus", {"ray.remote.num_cpus": 2}),
    ],
    ids=["submitit_slurm", "ray"],
)
def test_a_cell_gets_what_it_needs_for_its_devices(launcher, gpus, others):
    for trainer, devices, gpus_asked in (("gpu", 1, 1), ("cpu", 1, None), ("ddp", 2, None)):
        settings = sweep_settings(f"hydra/launcher={launcher}", f"trainer={trainer}").hydra.launcher
        assert OmegaConf.select(settings, gpus) == gpus_asked
        assert {key: OmegaConf.select(settings, key) for key in others} == {k: devices * v for k, v in others.items()}
    several = ["trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=4"]
    given = [f"hydra.launcher.{key}=3" for key in others]
    settings = sweep_settings(f"hydra/launcher={launcher}", *several, *given).hydra.launcher
    assert OmegaConf.select(settings, gpus) == 4
    assert [OmegaConf.select(settings, key) for key in others] == [3] * len(others)


def test_a_cell_on_several_nodes_gets_a_task_for_each_rank():
    def asked(nodes: int) -> dict[str, int]:
        several = ["trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=4", f"trainer.num_nodes={nodes}"]
        settings = sweep_settings("hydra/launcher=submitit_slurm", *several).hydra.launcher
        return {key: settings[key] for key in ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb")}

    assert asked(1) == {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 4, "cpus_per_task": 32, "mem_gb": 128}
    assert asked(2) == {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8, "mem_gb": 128}


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        ("submitit_slurm", r"its package is not installed\. Run `pip install -e '.\[slurm\]'`"),
        ("ray", r"\.\[ray\]"),
        ("joblib", r"\.\[joblib\]"),
    ],
)
def test_a_launcher_that_is_not_installed_is_told_before_anything_starts(launcher, says, monkeypatch):
    cfg = sweep_settings(f"hydra/launcher={launcher}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=says):
        launchers.check_launcher(cfg)


def test_a_launcher_that_cannot_do_it_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no sbatch on this machine"):
        launchers.check_launcher(sweep_settings("hydra/launcher=submitit_slurm"))
    with pytest.raises(UserError, match="all cells on the same GPU"):
        launchers.check_launcher(sweep_settings("hydra/launcher=joblib", "trainer=gpu"))
    for launcher in ("basic", "joblib"):
        with pytest.raises(UserError, match="needs a process for each rank on each machine"):
            launchers.check_launcher(sweep_settings(f"hydra/launcher={launcher}", "trainer=ddp", "trainer.num_nodes=2"))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="but torchrun has started 2 of this command"):
        patch.setenv("TORCHELASTIC_RUN_ID", "x")
        patch.setenv("WORLD_SIZE", "2")
        launchers.check_launcher(sweep_settings("hydra/launcher=joblib", "trainer=ddp"))
    for launcher, setting in (
        ("joblib", "n_jobs=0"),
        ("ray", "ray.remote.num_cpus=two"),
        ("ray", "ray.remote.num_cpus=-1"),
        ("ray", "ray.init.num_cpus=0"),
    ):
        with pytest.raises(UserError, match=re.escape(f"hydra.launcher.{setting}")):
            launchers.check_launcher(sweep_settings(f"hydra/launcher={launcher}", f"hydra.launcher.{setting}"))
    launchers.check_launcher(sweep_settings())


def test_a_cell_that_asks_ray_for_more_than_there_is_is_refused():
    from hydra_plugins import dash_exp_ray

    dash_exp_ray.check_room(OmegaConf.create({"num_cpus": 2, "num_gpus": None}), {"CPU": 2.0})
    with pytest.raises(UserError, match="num_cpus=4: is more than Ray has on this machine, 2"):
        dash_exp_ray.check_room(OmegaConf.create({"num_cpus": 4}), {"CPU": 2.0})
    with pytest.raises(UserError, match="num_gpus=1"):
        dash_exp_ray.check_room(OmegaConf.create({"num_cpus": 1, "num_gpus": 1}), {"CPU": 2.0})


def test_jobs_of_a_command_ask_slurm_for_the_same():
    def planned(*given: str) -> list[cells.Planned]:
        settings = [sweep_settings(*JOBS[:1], *given, trainer) for trainer in ("trainer=cpu", "trainer=ddp")]
        launchers = [OmegaConf.to_container(cfg.hydra.launcher, resolve=True) for cfg in settings]
        return [cells.Planned(Path(name), [name], cfg, made) for name, cfg, made in zip("ab", settings, launchers, strict=True)]

    with pytest.raises(UserError, match=r"wants hydra\.launcher\.cpus_per_task=16, and cell a 8"):
        cells._check_jobs(planned(), sweep_settings(*JOBS[:1]))
    cells._check_jobs(planned("hydra.launcher.cpus_per_task=8", "hydra.launcher.mem_gb=32"), sweep_settings(*JOBS[:1]))
