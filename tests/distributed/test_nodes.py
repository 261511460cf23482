"""Two machines come to the numbers of one process: two torchruns, two namespaces and a cut cable, two nodes of Slurm."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import needs
import processes
import pytest
import runs
import slurm
import worlds
from conftest import LETTERS, SMALL, TRAIN, composed, environment

from dash_exp.commands import run
from dash_exp.core.metrics import read_metrics
from dash_exp.results import run_folder
from dash_exp.results.cells import cells_of

COMMON = [*LETTERS, "eval.every=4", "steps=4", "data.tests.in_dist.size=6", "data.tests.out_dist.size=2", "algo=dash"]
BOUND_S = 90  # from the cut to the end of all processes: 30 s of silence, 30 s to end by themselves, and some to leave


def torchrun(node, address, port, *settings):
    """The command of one of two machines."""
    how = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--master-addr={address}", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *how, TRAIN, *settings, "trainer.devices=1", "trainer.num_nodes=2"]


@pytest.fixture
def machines(tmp_path):
    """Starts a command in the folder of a machine, with a home of its own: they share no folder."""
    started = []

    def start(node, command):
        folder = tmp_path / f"machine{node}"
        folder.mkdir(exist_ok=True)
        said = tmp_path / f"said{node}"
        with said.open("w") as out:
            process = subprocess.Popen(
                command, cwd=folder, env=environment(folder), stdout=out, stderr=out, start_new_session=True
            )
        started.append(process)
        return process, folder, said

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_two_torchruns_come_to_the_numbers_of_one_process(machines, tmp_path):
    """Sharded weights, KL against a reference. The second machine has no folder of the run."""
    settings = [*COMMON, "kl.coef=0.04"]
    port = slurm.free_port()
    both = [machines(n, torchrun(n, "127.0.0.1", port, *settings, "trainer=fsdp", "hydra.run.dir=run")) for n in (1, 0)]
    for process, _, said in both:
        assert process.wait(400) == 0, said.read_text()
    (_, second, said), (_, first, _) = both
    assert not [path for path in second.iterdir() if not path.name.startswith(".")], "only the first machine writes"
    assert "steps" not in said.read_text(), "only the first machine prints"
    run.run(composed(*settings), tmp_path / "alone")
    runs.alike(first / "run", tmp_path / "alone")


def test_torchrun_starts_a_run_again_whose_rank_was_killed(machines, tmp_path):
    """Its ranks meet at the same address as those before them."""
    settings = [*COMMON, "trainer=ddp", "steps=8", "eval.every=8", f"hydra.run.dir={tmp_path}/run"]
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command, _, said = machines(0, [sys.executable, *how, TRAIN, *settings])
    processes.wait_until((tmp_path / "run" / "completions" / "step_00002.jsonl").exists, 300, said.read_text)
    os.kill(worlds.pid_of(1, f"{tmp_path}/run"), signal.SIGKILL)
    assert command.wait(200) == 0, said.read_text()
    assert len(re.findall("^resumes after outer step", said.read_text(), re.MULTILINE)) == 1
    assert run_folder.read_result(tmp_path / "run")["status"] == "done"


def test_what_was_started_must_be_what_the_trainer_has(machines):
    port = slurm.free_port()
    both = [machines(n, torchrun(n, "127.0.0.1", port, *COMMON, "trainer=ddp")[:-1]) for n in (0, 1)]
    assert both[0][0].wait(120) == 1
    said = "error: trainer.devices=1 trainer.num_nodes=1: make 1 rank(s), but torchrun has started 2. Write what it starts."
    assert said in both[0][2].read_text()
    both[1][0].wait(60)


@pytest.fixture
def cable(tmp_path):
    """Two network namespaces with a cable between them: gives their names, and what sets the cable `up` or `down`."""

    names = [f"dash{os.getpid()}{n}" for n in (0, 1)]
    ends = [f"de{os.getpid() % 100000}{n}" for n in (0, 1)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for n, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, lambda state: ip("-n", names[1], "link", "set", ends[1], state)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.needs("namespaces")
def test_a_machine_whose_cable_is_cut_ends_the_run_by_name_and_it_goes_on_with_one_machine_or_two(cable, machines, tmp_path):
    """Each machine has a network, a name and a folder of its own."""
    names, put = cable
    settings = [*COMMON, "steps=16", "eval.every=16", "optimizer.lr=1e-5"]  # with larger steps, rounding grows

    def start():
        for n in (0, 1):
            as_machine = ["unshare", "--uts", "sh", "-c", f'hostname machine{n}; exec "$@"', "sh"]
            command = torchrun(n, "10.77.0.1", 29555, *settings, "trainer=ddp", "hydra.run.dir=run")
            yield machines(n, ["ip", "netns", "exec", names[n], *as_machine, *command])

    both = list(start())
    folder, said = both[0][1] / "run", both[0][2]
    third = folder / "completions" / "step_00003.jsonl"
    processes.wait_until(lambda: third.exists() and run_folder.snapshots(folder), 400, said.read_text)
    put("down")
    until = time.monotonic() + BOUND_S
    for process, _, _ in both:
        assert process.wait(until - time.monotonic()) == 1
    how = r"not heard of for \d+ s: its process has ended, or its machine, or the link to it"
    way_on = r"The same command resumes after outer step \d+ in \S+/run\."
    assert re.search(rf"error: rank 1 of 2 on machine1: {how}\. {way_on}", said.read_text()), said.read_text()
    assert re.search(rf"error: rank 0 of 2 on machine0: {how}", both[1][2].read_text())
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert "rank 1 of 2 on machine1" in result["error"]
    assert len(run_folder.snapshots(folder)) > 0

    shutil.copytree(folder, tmp_path / "with_one")
    for each in (tmp_path / "with_one", tmp_path / "alone"):
        run.run(composed(*settings), each)
    put("up")
    for process, _, said in list(start()):
        assert process.wait(400) == 0, said.read_text()
    assert re.search("^resumes after outer step", both[0][2].read_text(), re.MULTILINE)
    for each in (folder, tmp_path / "with_one"):
        runs.alike(each, tmp_path / "alone")


# Slurm cannot resolve the names of its nodes here
JOBS = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]
JOBS += ["hydra.callbacks.ledger.report=null"]


def setup(*lines):
    return f"hydra.launcher.setup={['export MASTER_ADDR=127.0.0.1', *lines]}"


def test_one_word_starts_a_sweep_on_two_nodes_of_slurm(machines, tmp_path):
    """Four arms, each of two ranks. The first one's time is up once: it saves, goes back into the queue and goes on."""
    needs.require("slurm")
    settings = [*COMMON[:-1], "steps=8", "eval.every=8", "optimizer.lr=1e-5"]  # with larger steps, rounding grows
    trainer = ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]
    arms = ["grpo", "no_gf", "dash", "rloo"]
    with slurm.slurm(tmp_path, nodes=2) as cluster:
        sweep = [sys.executable, TRAIN, "-m", *settings, *trainer, f"algo={','.join(arms)}", *JOBS, setup()]
        variables = [f"{k}={v}" for k, v in cluster.items()]
        command, home, said = machines(0, ["env", *variables, *sweep])
        folder = home / "multirun" / "small"

        processes.wait_until(lambda: list(folder.glob("*grpo*/completions/step_00002.jsonl")), 400, said.read_text)
        array = said.read_text().partition("job ")[2].partition("_")[0]
        slurm.ask(cluster, "scancel", "--signal=USR2", f"{array}_0.0")
        slurm.wait_for(lambda: slurm.start_waiting(cluster) or command.poll() is not None, 900)
    logs = "".join(path.read_text() for path in (folder / ".submitit").glob("*/*_0_log.out"))
    assert command.returncode == 0, said.read_text() + logs
    assert len(re.findall("^resumes after outer step", logs, re.MULTILINE)) == 1
    for arm, cell in zip(arms, cells_of(folder), strict=True):
        run.run(composed(*settings, f"algo={arm}"), tmp_path / arm)
        runs.alike(cell.folder, tmp_path / arm)


@pytest.mark.needs("vllm")
def test_a_job_of_a_node_that_trains_and_a_node_that_samples(machines, tmp_path):
    """The server is killed, and started again; then the time is up: the job goes back into the queue, and has a server again.
    Nothing is left of it when the cell has ended.
    """
    needs.require("slurm")
    steps = 4
    mark = f"MARK_OF_TEST={tmp_path}"
    settings = [*SMALL, f"steps={steps}", f"eval.every={steps}", "data.tests.in_dist.size=4", "data.tests.out_dist.size=4"]
    settings += ["rollout=vllm_server", "rollout.sampler.server_nodes=1", "rollout.sampler.cpu_cache_gb=0.25"]
    settings += ["rollout.sampler.max_sequences=64", "algo=dash"]
    with slurm.slurm(tmp_path, nodes=2) as cluster:
        exports = setup(f"export {mark}", "export TORCH_COMPILE_DISABLE=1 OMP_NUM_THREADS=1")
        sweep = [sys.executable, TRAIN, "-m", *settings, *JOBS, exports]
        command, home, said = machines(0, ["env", *(f"{k}={v}" for k, v in cluster.items()), *sweep])
        folder = home / "multirun" / "small"

        def log(task):
            return "".join(path.read_text() for path in folder.glob(f".submitit/*/*_{task}_log.out"))

        def all_said():
            return said.read_text() + log(0) + log(1)

        def has(file):
            assert command.poll() is None, all_said()
            return list(folder.glob(file))

        def servers():
            return [pid for pid, line in processes.with_mark(mark).items() if "dash_exp.sampling.vllm_main serve" in line]

        processes.wait_until(lambda: has("*/completions/step_00001.jsonl"), 400, all_said)
        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        processes.wait_until(lambda: servers() not in ([], [server]), 400, all_said)
        job = next(folder.glob("*/slurm_job")).read_text().strip()
        slurm.ask(cluster, "scancel", "--signal=USR2", f"{job}.0")
        slurm.wait_for(lambda: slurm.start_waiting(cluster) or command.poll() is not None, 600)
        assert command.returncode == 0, all_said()
        slurm.wait_for(lambda: not slurm.ask(cluster, "squeue", "--noheader"), 60)
        processes.wait_until_gone(mark, 60)
    assert re.search(r"^sampling server http://127\.0\.0\.1:\d+ was ended by SIGKILL: it is started again in 1 s", log(1), re.M)
    assert len(re.findall("^resumes after outer step", log(0), re.M)) == 1
    (cell,) = cells_of(folder)
    assert cell.status == "done"
    rows = read_metrics(cell.folder / "metrics.csv")[1:]
    assert [row["completions/sampled"] for row in rows] == [32] * steps
    assert max(row["mismatch/max_nats"] for row in rows if row["mismatch/max_nats"] is not None) < 1e-3
