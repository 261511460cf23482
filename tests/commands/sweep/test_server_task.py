"""Tasks of a Slurm job on a node that samples, with stand-ins for servers. A real job is in distributed/test_nodes.py."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import job_servers
import pytest
from conftest import ROOT, composed
from omegaconf import OmegaConf
from processes import wait_until
from servers import descendants
from slurm import free_port

from dash_exp.commands.sweep import server_task
from dash_exp.commands.sweep.server_nodes import ServerNodes
from dash_exp.core.errors import UserError
from dash_exp.distributed import place, server_store

PATIENCE_S = 60  # for what takes a moment on an idle machine


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def first(port, monkeypatch):
    """This process is the first task of a job with a node that trains and one that samples."""
    for name, value in job_servers.variables(port, nodes=2, tasks=1, task=0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(server_store.STORE, "")  # so that it is as before afterwards
    monkeypatch.setattr(server_store, "LEAVE_S", 1.0)


@pytest.fixture
def serving(port):
    """Starts the task on the node that samples."""
    started = []

    def start(*pauses_s):
        variables = job_servers.variables(port, nodes=2, tasks=1, task=1)
        started.append(forked.process(job_servers.serving_task, variables, pauses_s or (0.0,) * 5))
        return started[-1]

    yield start
    for task in started:
        task.kill()
        task.join(PATIENCE_S)


def ended_well(task):
    task.join(PATIENCE_S)
    return task.exitcode == 0


def stand_ins(task):
    return [pid for pid, line in descendants(task.pid).items() if "prctl" in line]


def listens(url):
    host, _, number = url.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(number))) == 0


def test_a_task_that_waits_for_the_first_one_hears_a_signal(serving):
    """scancel, before the node that trains has come."""
    task = serving()
    wait_until(lambda: hears(task.pid), PATIENCE_S)
    os.kill(task.pid, signal.SIGUSR2)  # the time limit is near: nothing to save here
    os.kill(task.pid, signal.SIGTERM)
    assert ended_well(task)


def hears(pid):
    """Whether the process has a handler of SIGTERM and ignores SIGUSR2."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    bits = {name: int(lines[name], 16) for name in ("SigCgt", "SigIgn")}
    return bits["SigCgt"] >> (signal.SIGTERM - 1) & 1 and bits["SigIgn"] >> (signal.SIGUSR2 - 1) & 1


def test_servers_end_with_the_cell_and_one_that_dies_is_started_again(first, serving):
    """At the same port. At another one where another program has taken that, which the first rank hears of."""
    with server_store.opened():
        task = serving()
        where = server_store.addresses()
        (url,) = where()
        wait_until(lambda: listens(url), PATIENCE_S)
        (before,) = stand_ins(task)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: stand_ins(task) not in ([], [before]) and listens(url), PATIENCE_S)
        assert where() == [url]
        os.kill(task.pid, signal.SIGSTOP)
        (before,) = stand_ins(task)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not listens(url), PATIENCE_S)
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
            os.kill(task.pid, signal.SIGCONT)
            wait_until(lambda: where() != [url] and listens(where()[0]), PATIENCE_S)
    assert ended_well(task)
    assert stand_ins(task) == []


def test_servers_end_on_a_signal(first, serving):
    with server_store.opened():
        task = serving()
        (url,) = server_store.addresses()()
        wait_until(lambda: listens(url), PATIENCE_S)
        (server,) = stand_ins(task)
        os.kill(task.pid, signal.SIGTERM)
        assert ended_well(task)
        assert not os.path.exists(f"/proc/{server}")


def test_a_server_that_ends_again_and_again_stays_so_and_the_first_rank_is_told(first, serving):
    with server_store.opened():
        task = serving(0.0, 0.0)
        where, killed = server_store.addresses(), set()

        def all_killed():
            for pid in set(stand_ins(task)) - killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            return len(killed) == 3

        wait_until(all_killed, PATIENCE_S)
        with pytest.raises(
            UserError, match=r"no sampling server is left \(http://\S+ was ended by SIGKILL, 3 times in a row\)"
        ):
            wait_until(lambda: not where(), PATIENCE_S)
        assert task.is_alive(), "the cell decides when its job ends"
    assert ended_well(task)


def test_the_first_task_dies_and_so_do_the_servers(port, serving):
    first = forked.process(job_servers.first_task, job_servers.variables(port, nodes=2, tasks=1, task=0))
    task = serving()
    wait_until(lambda: stand_ins(task), PATIENCE_S)
    os.kill(first.pid, signal.SIGKILL)
    assert ended_well(task)
    first.join(PATIENCE_S)


# --- what each server gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "each", "tasks", "of_each_task"),
    [
        ("0,1,2,3", 1, 1, [["0", "1", "2", "3"]]),
        ("0,1,2,3", 2, 1, [["0,1", "2,3"]]),
        ("0,1,2,3", 1, 4, [["0"], ["1"], ["2"], ["3"]]),  # a task for each rank, on the nodes that train
        ("0,1,2,3", 2, 4, [["0,1"], ["2,3"], [], []]),
        ("GPU-a,GPU-b", 2, 1, [["GPU-a,GPU-b"]]),
    ],
)
def test_the_gpus_of_a_node_are_shared_out(visible, each, tasks, of_each_task, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(place, "tasks_of_a_node", lambda: tasks)
    asked = ServerNodes(1, each, True, "")
    assert [server_task.gpus_of_servers(asked, local) for local in range(tasks)] == of_each_task


def test_a_node_without_gpus_has_one_server(monkeypatch):
    monkeypatch.setattr(place, "tasks_of_a_node", lambda: 2)
    asked = ServerNodes(1, 1, False, "")
    assert [server_task.gpus_of_servers(asked, local) for local in (0, 1)] == [[""], []]


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "0,1,2"])
def test_a_node_with_other_gpus_than_the_job_asked_for_is_told(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(place, "tasks_of_a_node", lambda: 1)
    with pytest.raises(UserError, match=rf"gpus_per_server=2: this node has {3 * (visible == '0,1,2')} GPU\(s\)"):
        server_task.gpus_of_servers(ServerNodes(1, 2, True, ""), 0)


def test_the_process_of_a_server(tmp_path, monkeypatch):
    """It has the GPUs and the settings, and nothing of the ranks. The first server's port is not given twice."""
    says = "import os, sys; print(os.environ.get('MASTER_PORT'), os.environ['CUDA_VISIBLE_DEVICES'], sys.stdin.read())"
    monkeypatch.setattr(server_task, "command", lambda server: [sys.executable, "-c", says])
    monkeypatch.setenv("MASTER_PORT", "1")
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: popen(*a, **k, stdout=(tmp_path / "said").open("w")))
    server = server_task.Server("127.0.0.1", "2,3", ServerNodes(1, 2, True, "seed: 7"))
    server.look_after(apart_from=set())
    assert server.process.wait(PATIENCE_S) == 0
    assert (tmp_path / "said").read_text() == "None 2,3 seed: 7\n"
    assert server.url == f"http://127.0.0.1:{server.port}"
    server.host = "fe80::1"
    assert server.url == f"http://[fe80::1]:{server.port}"


def test_a_server_says_what_is_wrong_with_its_settings():
    cfg = composed("rollout=vllm_server", "model.path=/nowhere")
    made = [sys.executable, "-m", "dash_exp.commands.sweep.server_task", str(os.getpid()), "127.0.0.1", str(free_port()), "1"]
    done = subprocess.run(made, cwd=ROOT, input=OmegaConf.to_yaml(cfg), capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert done.stderr.startswith("error: model.path=/nowhere: there is no such folder."), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_is_vllm_with_the_settings_of_the_cell(monkeypatch):
    """Tensor parallelism over its GPUs."""
    from dash_exp.commands import serve

    cfg = composed("rollout=vllm_server", "model=tiny_random", "rollout.sampler.max_sequences=8")
    command = serve.Command(8001, "10.0.0.2", [], ["--tensor-parallel-size", "4"])
    _, _, words = serve.loaded(cfg, command)
    said = {"--tensor-parallel-size": "4", "--max-num-seqs": "8", "--host": "10.0.0.2", "--port": "8001"}
    assert {option: words[words.index(option) + 1] for option in said} == said
