"""How the addresses of a job's own sampling servers come from its last nodes to the first rank."""

import os
import re
import signal
import socket
import time

import forked
import job_servers
import pytest
import torch
import worlds
from omegaconf import OmegaConf
from processes import wait_until
from slurm import free_port

from dash_exp.commands import rank, run
from dash_exp.core.errors import UserError
from dash_exp.distributed import beats, server_store
from dash_exp.distributed.server_store import Link, Said

PATIENCE_S = 60  # for what takes a moment on an idle machine


@pytest.fixture
def job(monkeypatch):
    """The variables of the first task of a job with a node that trains and a node with two tasks that sample."""
    variables = job_servers.variables(free_port(), nodes=2, tasks=2, task=0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(server_store.STORE, "")  # so that it is as before afterwards
    monkeypatch.setattr(server_store, "LOOK_S", 0.02)
    return variables


def said(*urls, **more):
    return Said(urls=urls, gone=more.pop("gone", [""] * len(urls)), **more)


def test_addresses_reach_the_first_rank_and_so_do_new_ones(job):
    with server_store.opened():
        assert os.environ[server_store.STORE] == f"127.0.0.1:{job['MASTER_PORT']}"
        links = [Link(0), Link(1)]
        wait_until(lambda: all(link.own for link in links), PATIENCE_S)
        assert [link.own for link in links] == ["127.0.0.1", "127.0.0.1"]
        links[1].say(said("http://b:1"))
        links[0].say(said("http://a:1", "http://a:2"))
        where = server_store.addresses()
        assert where() == ["http://a:1", "http://a:2", "http://b:1"]
        links[0].say(said("http://a:1", "http://a:3", gone=["killed", ""]))
        wait_until(lambda: where() == ["http://a:1", "http://a:3", "http://b:1"], PATIENCE_S)
        links[0].say(said("http://a:1", "http://a:3", gone=["killed", "killed too"]))
        links[1].say(said("http://b:1", gone=["status 1"]))
        here = "rollout.sampler.server_nodes=1: "
        wait_until(lambda: refusal(where).startswith(f"{here}no sampling server is left (status 1). Look at"), PATIENCE_S)
        links[1].say(said(wrong="gpus_per_server=3: this node has 4 GPU(s)", host="node7"))
        wrong = f"{here}node7: gpus_per_server=3: this node has 4 GPU(s). Look at the logs of the job's other tasks."
        wait_until(lambda: refusal(where) == wrong, PATIENCE_S)
        assert not any(link.over for link in links)
    wait_until(lambda: all(link.over for link in links), PATIENCE_S)


def refusal(where):
    try:
        where()
    except UserError as error:
        return str(error)
    return ""


def test_a_cell_that_fails_ends_the_servers_too(job):
    with pytest.raises(ZeroDivisionError), server_store.opened():
        link = Link(0)
        wait_until(lambda: link.own, PATIENCE_S)
        raise ZeroDivisionError
    wait_until(lambda: link.over, PATIENCE_S)


def test_the_end_of_the_first_task_by_force_is_noticed(job):
    first = forked.process(job_servers.first_task, job)
    link = Link(0)
    wait_until(lambda: link.own, PATIENCE_S)
    assert not link.over
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: link.over, PATIENCE_S)
    first.join(PATIENCE_S)


def test_a_first_task_that_says_nothing_any_more_is_noticed(job, monkeypatch):
    """As where the link to its machine is cut. Not where this process was stopped itself."""
    first = forked.process(job_servers.first_task, job)
    link = Link(0)
    wait_until(lambda: link.own, PATIENCE_S)
    os.kill(first.pid, signal.SIGSTOP)
    monkeypatch.setattr(beats, "SILENCE_S", 1.0)
    monkeypatch.setattr(beats, "LATE_S", 0.5)
    time.sleep(1.5)
    assert not link.over  # nobody has asked for longer than LATE_S
    until = time.monotonic() + 10
    wait_until(lambda: link.over, PATIENCE_S)
    assert time.monotonic() < until
    os.kill(first.pid, signal.SIGKILL)
    first.join(PATIENCE_S)


def test_a_first_task_that_does_not_come_is_not_waited_for_without_end(job, monkeypatch):
    monkeypatch.setattr(beats, "START_S", 0.3)
    link = Link(0)
    wait_until(lambda: link.over, PATIENCE_S)
    assert link.own == ""


def test_another_program_at_the_address_is_not_taken_for_the_first_task(job, monkeypatch):
    monkeypatch.setattr(server_store, "ANSWER_S", 0.3)
    says = rf"^127\.0\.0\.1:{job['MASTER_PORT']}: the sampling servers cannot be met there"
    with socket.create_server(("127.0.0.1", int(job["MASTER_PORT"]))):
        with pytest.raises(UserError, match=says), server_store.opened():
            pass
        link = Link(0)
        time.sleep(1.5)
        assert (link.own, link.over) == ("", False)
    link.end()
    wait_until(lambda: link.over, PATIENCE_S)


def test_tasks_that_do_not_say_where_their_servers_are_end_a_run_that_starts(job, monkeypatch):
    monkeypatch.setattr(beats, "START_S", 0.5)
    monkeypatch.setattr(server_store, "LEAVE_S", 0.1)
    with server_store.opened():
        link = Link(0)
        link.say(said("http://a:1"))
        wait_until(lambda: link.own, PATIENCE_S)
        wrong = re.escape(
            "1 of 2 tasks did not say within 0 s where their servers are. Look at the logs of the job's other tasks."
        )
        with pytest.raises(UserError, match=wrong):
            server_store.addresses()


def test_ranks_on_two_nodes_meet_in_the_store_of_a_job_whose_third_node_samples(monkeypatch, tmp_path):
    """They are two ranks: the task of the third node is none."""
    port = free_port()
    of_task = [job_servers.variables(port, nodes=3, tasks=1, task=task) for task in range(3)]
    other = forked.process(job_servers.second_rank, of_task[1])
    task = forked.process(job_servers.serving_task, of_task[2], (0.0,))
    for name, value in of_task[0].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(server_store.STORE, "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    try:
        with server_store.opened(), rank.taking_part(worlds.gives_back):
            with run.leading(OmegaConf.create({}), tmp_path) as group:
                group.join()
                group.tensors_from_first([torch.ones(2)])
                _, theirs = group.gather(None)
            (url,) = server_store.addresses()()
        assert torch.equal(theirs[0], torch.ones(2))
        assert url.startswith("http://127.0.0.1:")
        for each in (other, task):
            each.join(PATIENCE_S)
            assert each.exitcode == 0
    finally:
        for each in (other, task):
            each.kill()
            each.join(PATIENCE_S)
