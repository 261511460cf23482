"""How ranks find each other, and find that one has gone."""

import os
import re
import signal
import socket
import threading
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import forked
import lightning as L
import processes
import pytest
import torch
import torch.distributed as dist
import worlds
from conftest import composed
from omegaconf import OmegaConf

from dash_exp.commands import run, several
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.distributed import beats, place, ranks, strategies, world
from dash_exp.distributed.beats import Beats
from dash_exp.results import run_folder

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("variables", "size", "index", "start"),
    [
        ({}, 1, 0, "0"),
        (TORCHRUN, 4, 3, "0"),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}, 4, 3, "1"),  # torchrun --max-restarts
        (SRUN | {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3"}, 2, 1, "77.3"),  # a second srun of the job is another start
        (SRUN | {"SLURM_JOB_ID": "77"} | TORCHRUN, 4, 3, "0"),  # torchrun inside a job
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, 0, "0"),  # the script of sbatch
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, 2, 1, "0"),  # srun in the shell of salloc
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, 1, 0, "0"),  # srun --pty bash
    ],
)
def test_whether_others_were_started_with_this_process(variables, size, index, start, monkeypatch):
    for name in (*TORCHRUN, *SRUN, "SLURM_JOB_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (place.size(), place.index(), place.start()) == (size, index, start)


def of_job(nodes, tasks, server_nodes, node, local, dealt=False):
    """The variables of a task on a node of a job with server nodes; `dealt`: Slurm numbers the tasks across the nodes."""
    number = local * nodes + node if dealt else node * tasks + local
    found = {"SLURM_STEP_NUM_TASKS": nodes * tasks, "SLURM_STEP_NUM_NODES": nodes, "SLURM_NODEID": node}
    found |= {"SLURM_LOCALID": local, "SLURM_PROCID": number, "DASH_EXP_SERVER_NODES": server_nodes}
    found |= {"SLURM_NTASKS": nodes * tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_NNODES": nodes, "SLURM_JOB_ID": "77"}
    return {name: str(value) for name, value in found.items()}


@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize(
    ("job", "size", "machines", "of_each"),
    [
        ((2, 1, 1), 1, 1, {(0, 0): (0, None), (1, 0): (0, 0)}),  # one node trains, with any number of devices
        ((3, 1, 2), 1, 1, {(0, 0): (0, None), (1, 0): (0, 0), (2, 0): (0, 1)}),
        ((3, 2, 1), 4, 2, {(0, 1): (1, None), (1, 0): (2, None), (1, 1): (3, None), (2, 0): (4, 0), (2, 1): (5, 1)}),
    ],
)
def test_tasks_on_the_last_nodes_of_a_job_are_no_ranks_where_these_sample(job, size, machines, of_each, dealt, monkeypatch):
    for (node, local), (index, server_task) in of_each.items():
        for name, value in of_job(*job, node, local, dealt).items():
            monkeypatch.setenv(name, value)
        assert (place.size(), place.machines()) == (size, machines)
        assert place.server_tasks() == job[1] * job[2]
        assert place.server_task() == server_task
        if server_task is None:
            assert place.index() == index
            place.check(size // machines, machines)


def test_lightning_has_the_ranks_without_the_tasks_that_sample(monkeypatch):
    for name, value in of_job(3, 2, 1, node=1, local=0).items():
        monkeypatch.setenv(name, value)
    found = world.environment()
    assert (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()) == (4, 2, 0, 1)
    found.validate_settings(num_devices=2, num_nodes=2)
    with pytest.raises(ValueError, match="num_nodes"):
        found.validate_settings(num_devices=2, num_nodes=3)


@pytest.mark.parametrize(("name", "size"), [("bash", 1), ("interactive", 1), ("python", 2)])
def test_a_command_typed_in_a_shell_of_several_tasks_is_alone(name, size, monkeypatch):
    """srun -n2 --pty bash: the other shell has ended. With --pty python the second task is there, without a terminal."""
    for variable, value in (SRUN | {"SLURM_PROCID": "0", "SLURM_JOB_NAME": name}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(os, "isatty", lambda file: file == 0)
    assert (place.size(), place.index()) == (size, 0)


def test_srun_must_say_how_many_tasks_a_node_has(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    for variable, value in (SRUN | {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=r"^srun: has started 2 tasks and .* Add --ntasks-per-node=N"):
        world.environment()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setattr("shutil.which", lambda name: name)
    with warnings.catch_warnings(action="error"):  # Lightning takes this job for one without srun
        assert world.environment().global_rank() == 1


def test_ranks_that_nothing_has_started_are_refused(monkeypatch):
    with pytest.raises(UserError, match="needs a process for each rank on each machine, and this is one process alone"):
        place.check(1, 2)
    place.check(2, 1)  # which the run starts itself
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    place.check(2, 2)
    with pytest.raises(UserError, match=r"make 2 rank\(s\), but torchrun has started 4"):
        place.check(2, 1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(beats, "BEAT_S", 0.02)


def found(watcher, run=1, within_s=0.5):
    """What it misses, as soon as it misses something, within some seconds."""
    until = time.monotonic() + 5
    while not (missing := watcher.missing(run, within_s)) and time.monotonic() < until:
        time.sleep(0.01)
    return missing


def test_a_rank_that_is_silent_is_missed_and_one_that_has_said_why_is_named_first(quick):
    store = dist.HashStore()
    first, *others = [Beats(store, index, 3) for index in range(3)]
    time.sleep(0.5)
    assert first.missing(1, 0.5) is None
    assert others[0].missing(1, 0.5) is None
    others[1].end()
    index, heard = found(first)
    assert (index, heard.why) == (2, "")
    assert heard.host == os.uname().nodename
    store.set("why/1", "1 memory ran out")
    processes.wait_until(lambda: first.missing(1, 60), 5)
    index, heard = first.missing(1, 60)
    assert (index, heard.why) == (1, "memory ran out")
    assert first.missing(2, 60) is None  # it was in the run before
    for each in (first, others[0]):
        each.end()


GONE = (1, beats.Heard(0.0, "7 node7", "node7"))
SAID_WHY = (1, replace(GONE[1], why="memory ran out"))
STORE = r"^the store at node0:29500: has gone \(torchrun on this machine has ended\)"


@pytest.mark.parametrize(
    ("looks", "index", "broken", "says"),
    [
        ([GONE, GONE], 0, False, r"^rank 1 of 2 on node7: not heard of for \d+ s: "),
        ([GONE, None], 0, False, None),  # this process was stopped, as by Ctrl-Z: its own clock has gone on without it
        ([SAID_WHY], 0, False, r"^rank 1 of 2 on node7: ended \(memory ran out\)"),
        ([None], 0, False, None),
        ([(1, beats.Heard(0.0))] * 2, 0, False, "^rank 1 of 2: not heard of"),
        ([GONE, GONE], 0, True, STORE),  # not the fault of the other rank
        ([SAID_WHY], 0, True, r"^rank 1 of 2 on node7: ended"),
        ([(0, replace(GONE[1], host="node0"))] * 2, 1, True, "^rank 0 of 2 on node0: not heard of"),
    ],
)
def test_a_rank_is_lost_where_two_looks_agree(looks, index, broken, says, monkeypatch):
    monkeypatch.setattr(beats, "SURE_S", 0.0)
    here = object.__new__(world.World)
    here.run, here.index, here.size, here.silence_s, here.address = 1, index, 2, 30.0, "node0:29500"
    here._beats = SimpleNamespace(missing=lambda *_: looks.pop(0), broken=broken)
    lost = here.lost()
    assert re.search(says, str(lost)) if says else lost is None, lost
    assert not looks


def test_the_silence_of_a_process_that_was_stopped_itself_is_nobodys(quick):
    store = dist.HashStore()
    first, other = Beats(store, 0, 2), Beats(store, 1, 2)
    processes.wait_until(lambda: first._of[1].beat, 5)
    first._answered = first._of[1].at = time.monotonic() - 100
    time.sleep(0.3)
    assert first.missing(1, 30) is None
    for each in (first, other):
        each.end()


def test_a_store_that_has_gone_is_missed_at_once(quick):
    class Broken(dist.HashStore):
        def check(self, keys):
            raise RuntimeError("connection reset by peer")

    other = Beats(Broken(), 1, 2)
    assert found(other, within_s=60)[0] == 0
    assert other.broken


@pytest.mark.parametrize(
    ("is_over", "error", "says"), [(False, UserError, "^rank 1 of 2: was not ready within 0 s"), (True, ranks.OverError, None)]
)
def test_a_rank_that_does_not_come_is_not_waited_for_without_end(is_over, error, says, monkeypatch):
    monkeypatch.setattr(ranks, "READY_S", 0.1)
    here = SimpleNamespace(store=dist.HashStore(), run=1, lost=lambda: None, is_over=lambda: is_over)
    with pytest.raises(error, match=says):
        ranks.Ranks(0, 2, here).join()


def test_a_port_that_another_program_has_is_told(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
        for name, value in (TORCHRUN | at | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+: 4 processes cannot meet there \(.*already in use\)"):
            world.World()


def test_lightning_takes_no_signal_of_several_ranks():
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    strategies.leave_signals_alone(trainer)
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_gloo_uses_the_link_to_the_first_rank(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is as before afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    world.use_link_to("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "of the user")
    world.use_link_to("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "of the user"


@pytest.mark.parametrize(
    ("machines", "own", "others", "reached"),
    [
        (2, "127.0.1.1", ["127.0.1.1", "10.0.0.2"], "10.0.0.2"),  # the first rank by its name, on Debian
        (2, "10.0.0.2", [], "node1"),  # another rank: the name is that of another machine
        (1, "127.0.1.1", [], "node1"),
        (2, "127.0.0.1", ["", "127.0.0.1"], "node1"),  # two nodes on one machine
    ],
)
def test_where_the_first_rank_is_known_to_itself_as_127_the_link_is_that_to_another(
    machines, own, others, reached, monkeypatch
):
    here = object.__new__(world.World)
    here.index, here.size, here.address, here.store = 0, 1 + len(others), "node1:1", dist.HashStore()
    for rank, address in enumerate(others, start=1):
        here.store.set(f"address/{rank}", address)
    monkeypatch.setattr(place, "machines", lambda: machines)
    monkeypatch.setattr(world, "own_address", lambda to: own)
    assert here._elsewhere("node1") == reached


@pytest.mark.parametrize(
    ("variables", "machines"),
    [
        ({}, 1),
        (TORCHRUN, 1),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, 2),
        (SRUN, 1),
        (SRUN | {"SLURM_STEP_NUM_NODES": "2"}, 2),
        ({"SLURM_STEP_NUM_NODES": "2"}, 1),
    ],
)
def test_on_how_many_machines_the_processes_are(variables, machines, monkeypatch):
    for name in (*TORCHRUN, *SRUN, "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place.machines() == machines


def failed(exitcode, message="", timestamp=0):
    said = {"message": message} if message else ""

    def name():
        return signal.Signals(-exitcode).name

    return SimpleNamespace(exitcode=exitcode, message=said, timestamp=timestamp, signal_name=name)


LEFT, ENDED = process.RESUME_ME, -signal.SIGTERM


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({1: failed(-9), 0: failed(1, "UserError: rank 1 of 2 on a: ended.")}, "rank 1 of 2: was killed (SIGKILL), as"),
        ({0: failed(-9, timestamp=9), 1: failed(-11, timestamp=1)}, "rank 1 of 2: was stopped by SIGSEGV. R."),
        ({0: failed(-9, timestamp=9), 1: failed(1, "ImportError: no", timestamp=1)}, "rank 1 of 2: ended with status 1 (Imp"),
        ({0: failed(1, "UserError: reward.pattern: is wrong. Write another.")}, "reward.pattern: is wrong. Write another."),
        ({0: failed(1, "KeyError: 'x'")}, "rank 0 of 2: ended with status 1 (KeyError: 'x'). R."),
        ({0: failed(LEFT), 1: failed(1, "ImportError: no")}, "rank 1 of 2: ended with status 1 (ImportError: no). R."),
        ({0: failed(ENDED), 1: failed(1, "ImportError: no")}, "rank 1 of 2: ended with status 1 (ImportError: no). R."),
    ],
)
def test_what_has_ended_ranks_of_this_machine_is_one_message(failures, message):
    assert str(several.cause(failures, 2, "R")).startswith(message)


def test_ranks_that_were_told_to_leave_are_no_error():
    for code, status in ((LEFT, LEFT), (process.INTERRUPTED, process.INTERRUPTED), (ENDED, LEFT)):
        left = several.cause({0: failed(code)}, 2, "R")
        assert isinstance(left, SystemExit)
        assert left.code == status


@pytest.mark.parametrize("status", [None, "done"])
def test_a_signal_after_the_end_of_a_run_does_not_make_it_a_stopped_one(status, tmp_path, monkeypatch):
    def launch(*_):
        if status:
            run_folder.write_result(tmp_path, {"status": status})
        raise SystemExit(process.RESUME_ME)

    monkeypatch.setattr(several.launcher, "launch", launch)
    with nullcontext() if status else pytest.raises(SystemExit, match="75"):
        assert several.launched(composed("trainer=ddp"), tmp_path, False)["status"] == status
    assert run_folder.read_result(tmp_path)["status"] == (status or "stopped")


@pytest.mark.parametrize(("status", "after"), [(None, "failed"), ("stopped", "failed"), (run_folder.ENDING, run_folder.ENDING)])
def test_a_rank_that_goes_away_does_not_make_a_trained_run_a_failed_one(status, after, tmp_path):
    if status:
        run_folder.write_result(tmp_path, {"status": status})
    run.write_failed(tmp_path, UserError("rank 1 of 2", "not heard of", world.AGAIN))
    assert run_folder.read_result(tmp_path)["status"] == after


@pytest.mark.parametrize(("snapshot", "way_on"), [(None, "starts from the beginning"), (3, "resumes after outer step 3 in ")])
def test_a_run_that_hangs_ends_with_what_to_do(snapshot, way_on, tmp_path, monkeypatch, capsys):
    """As one whose collective fails does."""
    if snapshot:
        (tmp_path / run_folder.SNAPSHOTS).mkdir(parents=True)
        (tmp_path / run_folder.SNAPSHOTS / f"step_{snapshot:05d}-{'0' * 16}.pt").touch()
    lost = world.RankLostError("rank 1 of 2", "not heard of", world.AGAIN)
    left = []
    monkeypatch.setattr(world, "GRACE_S", 0.0)
    monkeypatch.setattr(world.os, "_exit", lambda status: left.append(status) or over.set())
    over = threading.Event()
    world.World._watch(SimpleNamespace(first=True, lost=lambda: lost), over, partial(run.lost_error, tmp_path))
    assert left == [1]
    said = capsys.readouterr().err
    assert said.startswith(f"error: rank 1 of 2: not heard of. The same command {way_on}")
    assert run_folder.read_result(tmp_path)["error"] == f"UserError: {said.removeprefix('error: ').strip()}"


def test_a_rank_whose_launcher_was_killed_before_it_began_ends():
    rank = forked.process(process.end_with, 0)
    rank.join(100)
    assert rank.exitcode == 1


def test_tensors_of_the_first_rank_come_as_they_are(tmp_path):
    """Of any shape and type, without numbers and not contiguous too; and what is between them."""
    halves = torch.ones(2, 2, dtype=torch.bfloat16)
    of_each = [torch.tensor(3), torch.empty(0), torch.eye(3).T[:, 1:], halves, torch.get_rng_state()]
    value = {"weights": {"a": of_each[0], 3: of_each[1:]}, "rest": [1, ("x", None), {}], "nothing": None}
    with worlds.two_ranks(worlds.gives_back), run.leading(OmegaConf.create({}), tmp_path) as group:
        group.join()
        group.tensors_from_first(value)
        _, theirs = group.gather(None)
    for mine, given in zip(of_each, [theirs["weights"]["a"], *theirs["weights"][3]], strict=True):
        assert given.dtype == mine.dtype
        assert torch.equal(given, mine)
    assert (theirs["rest"], theirs["nothing"]) == (value["rest"], None)
