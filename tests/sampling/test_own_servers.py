"""Servers that a run starts itself: their processes, which are stand-ins, and how they sleep. A real one is in
tests/commands/test_samplers.py.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import ROOT
from servers import command_line, until
from stand_in import StandIn, good, hangs, proper, slow

from dash_exp.core.errors import UserError
from dash_exp.models import adapter
from dash_exp.sampling import own_servers
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.own_servers import OwnServers

KEY = (0, 3)
START_S = 120.0
WAKE, READY = "/wake_up?tags=weights", "/wake_up?tags=kv_cache"
UPDATE = [WAKE, "/pause", "/update_weight_version", "/collective_rpc", READY, "/reset_prefix_cache"]
UPDATE += ["/update_weight_version", "/resume"]


# --- processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts stand-ins."""
    monkeypatch.setattr(own_servers, "PROGRAM", "stand_in_server")
    monkeypatch.setattr(own_servers, "LOOK_S", 0.05)
    made = []

    def make(how="ready", gpus=(None,), sleep=False, within_s=START_S):
        (tmp_path / "how").write_text(how)
        made.append(OwnServers(tmp_path, tmp_path, gpus, sleep, within_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pids(own):
    return [server.process.pid for server in own._each]


def about(url):
    return json.loads(httpx.get(f"{url}/v1/models", timeout=30).json()["data"][1]["id"])


@pytest.mark.parametrize("how", ["ready", "stubborn"])
def test_one_on_each_gpu_until_they_are_closed(start, monkeypatch, tmp_path, how):
    """What is meant for the ranks of the run is not for them."""
    monkeypatch.setattr(own_servers, "END_S", 1.0)
    monkeypatch.setenv("RANK", "0")
    own = start(how, ["2", "GPU-1"], sleep=True)
    found = [about(url) for url in own.urls]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "GPU-1"]
    assert [each["RANK"] for each in found] == [None, None]
    assert [each["further"] for each in found] == [["--", "--enable-sleep-mode"]] * 2
    assert own.outputs == f"{tmp_path}/sampling_server_1.txt, {tmp_path}/sampling_server_2.txt"
    assert not own.have_ended()
    own.close()
    assert own.have_ended()
    assert [command_line(pid) for pid in pids(own)] == ["", ""]


def test_the_place_of_a_server_without_a_gpu_is_left_as_it_is(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = about(start().urls[0])
    assert (found["CUDA_VISIBLE_DEVICES"], found["further"]) == ("7", [])


@contextmanager
def another_program(how):
    """Its port."""
    if how == "takes connections":
        with socket.create_server(("127.0.0.1", 0)) as other:
            yield other.getsockname()[1]
        return
    other = StandIn(**({"pid": 1} if how == "is another server" else {}))
    yield other.server_address[1]
    other.shutdown()
    other.server_close()


@pytest.mark.parametrize("how", ["takes connections", "answers", "is another server"])
def test_a_port_that_another_program_takes_meanwhile(start, monkeypatch, caplog, how):
    with another_program(how) as port:
        ports, free = [port], own_servers.free_port
        monkeypatch.setattr(own_servers, "free_port", lambda host: ports.pop() if ports else free(host))
        own = start("ready" if how == "takes connections" else f"silent {port}")
        assert own.urls != [f"http://127.0.0.1:{port}"]
        assert about(own.urls[0])["pid"] == pids(own)[0]
    assert f"another program has taken port {port}, so a sampling server is started again at another one" in caplog.text


def test_ports_that_are_always_taken(start, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(own_servers, "free_port", lambda host: port)
        with pytest.raises(UserError, match=rf"other programs have taken the port .* 3 times, last {port}\."):
            start()


def test_a_server_that_ends_while_it_starts(start, tmp_path):
    """With what it printed last, and where the rest is. The other one ends too."""
    with pytest.raises(UserError) as error:
        start("fails")
    assert str(error.value) == (
        "rollout.sampler.colocate=true: a sampling server ended with status 1 (model: cannot be loaded. Choose another). "
        f"See {tmp_path}/sampling_server_1.txt."
    )


def test_a_server_that_does_not_start_in_time(start, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(own_servers, "SAY_EVERY_S", 0.2)
    with pytest.raises(
        UserError, match=r"1 of 1 sampling server\(s\) did not start within 1 s\. See .*/sampling_server_1\.txt,"
    ):
        start("silent", within_s=1.0)
    said = capsys.readouterr().out
    assert f"starts 1 sampling server(s), which print into {tmp_path}/sampling_server_*.txt" in said
    assert "waits for 1 of 1 sampling server(s), " in said
    marks = [folder for folder in Path("/proc").glob("[0-9]*") if f"run={tmp_path}" in command_line(folder.name)]
    assert marks == []


TRAINER = """
import sys, time
from pathlib import Path
from dash_exp.sampling import own_servers
own_servers.PROGRAM = "stand_in_server"
own = own_servers.OwnServers(Path(sys.argv[1]), Path(sys.argv[1]), [None], False, 120.0)
print(own._each[0].process.pid, flush=True)
time.sleep(600)
"""


def test_servers_end_with_a_trainer_that_is_killed(tmp_path):
    (tmp_path / "how").write_text("stubborn")
    variables = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as trainer:
        lines = iter(trainer.stdout.readline, "")
        pid = next(int(line) for line in lines if line.strip().isdigit())
        assert "stand_in_server" in command_line(pid)
        trainer.send_signal(signal.SIGKILL)
    until(lambda: not command_line(pid), 60)


# --- sleep --------------------------------------------------------------------------------------------------------------


class Own:
    """In place of the processes."""

    outputs = "output.txt"
    ended = closed = False

    def have_ended(self):
        return self.ended

    def close(self):
        self.closed = True


def routes(server):
    return [route for route, _ in server.called]


def test_they_sleep_while_the_policy_trains(stand_ins, policy, prompts):
    """Weights are given to one that has memory for them, and it samples when it also has memory for the cache."""
    server, own = StandIn(), Own()
    sampler = stand_ins(server, own=own, transfer="auto")
    assert routes(server) == [WAKE, "/collective_rpc", *UPDATE[1:]]  # the second for where weights come from
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    for version in (2, 3):
        server.called.clear()
        sampler.rest()
        assert sampler.version is None
        sampler.rest()
        assert routes(server) == ["/sleep?level=2"]
        time.sleep(0.3)  # some looks of a task that would do something
        sampler.load_weights(policy.state_dict(), version)
        assert routes(server) == ["/sleep?level=2", *UPDATE]
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert sampler.updates.transfer == "folder"
    sampler.close()
    assert own.closed


def test_the_weights_below_an_adapter_are_kept_asleep(stand_ins, policy):
    server = StandIn()
    adapted = adapter.add(policy, None, r=4)
    sampler = stand_ins(server, trained=adapted, own=Own())
    sampler.rest()
    server.called.clear()
    sampler.load_weights(adapter.trained(adapted), 2)
    assert [r for r in routes(server) if "wake" in r or "/load" in r] == [WAKE, "/v1/load_lora_adapter", READY]
    sampler.rest()
    assert routes(server)[-1] == "/sleep?level=1"


def test_servers_of_others_do_not_sleep(stand_ins, policy):
    server = StandIn()
    sampler = stand_ins(server)
    sampler.rest()
    assert sampler.version == 1
    assert not [route for route in routes(server) if route.startswith(("/sleep", "/wake_up"))]


def test_one_that_does_not_fall_asleep_is_lost_until_it_wakes(stand_ins, policy, prompts, caplog):
    bad, well = StandIn(), StandIn()
    sampler = stand_ins(bad, well, own=Own())
    bad.fails["/sleep"] = 500
    bad.called.clear()
    sampler.rest()
    assert f"{bad.url} is lost (it does not sleep, and may keep memory that the policy needs: /sleep: no)" in caplog.text
    time.sleep(0.5)
    assert routes(bad) == ["/sleep?level=2"]  # nothing is asked of it while the policy trains
    bad.fails.clear()
    sampler.load_weights(policy.state_dict(), 2)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    until(lambda: sampler.live_servers == 2, 30)
    assert routes(bad)[1:] == UPDATE


def test_one_that_is_lost_is_asked_to_sleep_too(stand_ins, policy, prompts):
    """It may have memory all the same."""
    bad, well = StandIn(hangs, proper), StandIn(slow)
    sampler = stand_ins(bad, well, own=Own(), timeout_s=1.0)
    bad.fails["/resume"] = 500  # it does not come back
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert sampler.live_servers == 1
    sampler.rest()
    assert routes(bad)[-1] == "/sleep?level=2"


def test_one_that_does_not_wake_gets_no_weights(stand_ins, policy, prompts, caplog):
    """vLLM would crash."""
    bad, well = StandIn(), StandIn()
    sampler = stand_ins(bad, well, own=Own())
    sampler.rest()
    bad.called.clear()
    bad.fails["/wake_up"] = 500
    sampler.load_weights(policy.state_dict(), 2)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert f"{bad.url} is lost (/wake_up: no); its prompts go to the others" in caplog.text
    assert set(routes(bad)) == {WAKE}
    bad.fails.clear()
    until(lambda: sampler.live_servers == 2, 30)


def test_weights_that_are_looked_at_are_awake(stand_ins, policy):
    """After an update that failed it sleeps with the label of loading."""
    server = StandIn()
    sampler = stand_ins(server, own=Own())
    server.fails["reload_weights"] = 500
    sampler.load_weights(policy.state_dict(), 2)
    sampler.rest()
    server.fails.clear()
    server.called.clear()
    sampler.load_weights(policy.state_dict(), 3)
    until(lambda: sampler.live_servers == 1, 30)
    assert routes(server)[:2] == [WAKE, "/weight_checker"]


def test_an_update_is_not_interrupted_by_sleep(stand_ins, policy):
    """One server is still given weights when the others have sampled: it sleeps after that."""
    late, well = StandIn(), StandIn()
    sampler = stand_ins(late, well, own=Own(), timeout_s=1.5)
    late.called.clear()
    late.then["/pause"] = late.then["reload_weights"] = lambda: time.sleep(1.2)
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.live_servers == 1
    sampler.rest()
    assert routes(late) == [*UPDATE, "/sleep?level=2"]


def test_a_call_ends_when_all_of_them_have_ended(stand_ins, prompts):
    def ends(handler, request):
        own.ended = True
        return hangs(handler, request)

    own = Own()
    sampler = stand_ins(StandIn(ends), own=own)
    with pytest.raises(UserError, match=r"colocate=true: all sampling servers have ended \(.*\)\. See output\.txt"):
        sampler.sample(prompts, 2, Sampling(3), KEY)


def test_how_long_a_call_waits_for_them(stand_ins, prompts):
    server = StandIn(hangs)
    sampler = stand_ins(server, own=Own(), timeout_s=0.5, give_up_s=0.5)
    server.answers["/weight_info"] = b"<html>"
    with pytest.raises(UserError, match=r"colocate=true: no server was available for 0\.5 s .*\. See output\.txt"):
        sampler.sample(prompts, 2, Sampling(3), KEY)
