"""How servers get new weights: stand-ins, what is in a folder and how long, the route for files, and NCCL without a GPU."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from servers import until
from stand_in import StandIn, good, slow

from dash_exp.core.errors import UserError
from dash_exp.models import adapter
from dash_exp.sampling import nccl, server_room
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.server_room import SERVED, UPLOAD, Room, delete_left_behind
from dash_exp.sampling.server_weights import Weights

KEY = (0, 3)


def test_the_steps_of_an_update(stand_ins, policy, tmp_path):
    """All names of the state dict, the tied head included, in the dtype of sampling; and no folder is used twice."""
    servers = StandIn(), StandIn()
    sampler = stand_ins(*servers, dtype=torch.bfloat16, weights_dir=str(tmp_path))
    steps = [route for route, _ in servers[0].called]
    update = ["/pause", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    assert steps == ["/collective_rpc", *update]  # the first for where weights come from
    labels = [sent["new_version"] for route, sent in servers[0].called if route == "/update_weight_version"]
    assert labels[0] == f"loading {labels[1]}"
    assert labels[1].endswith("version 1")
    assert servers[0].label != servers[1].label
    sent = safetensors.torch.load(servers[0].read[0]["model.safetensors"])
    assert servers[0].read == servers[1].read
    assert sent.keys() == policy.state_dict().keys() >= {"lm_head.weight"}
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(sent[name], tensor.to(torch.bfloat16))
    with torch.no_grad():
        policy.model.norm.weight.fill_(3.0)
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.version == 2
    assert [route for route, _ in servers[1].called] == ["/collective_rpc", *update, *update]
    sent = safetensors.torch.load(servers[1].read[1]["model.safetensors"])
    assert (sent["model.norm.weight"] == 3).all()
    first, second = paths_of(servers[1])
    assert first != second
    until(lambda: not Path(first).exists(), 30)
    assert Path(second).exists()
    sampler.close()
    assert list(tmp_path.iterdir()) == []


def paths_of(server):
    kwargs = [sent["kwargs"] for route, sent in server.called if route == "/collective_rpc"]
    return [given["weights_path"] for given in kwargs if "weights_path" in given]


def test_servers_that_do_not_see_the_folder(stand_ins):
    """They get a copy before they are paused. It is deleted again."""
    far, near = StandIn(far=True), StandIn()
    stand_ins(far, near)
    (file,) = far.put.values()
    assert file == near.read[0]["model.safetensors"]
    assert paths_of(far) == ["/there"]
    assert [route for route, _ in far.called][1:3] == ["PUT", "/pause"]
    assert far.deleted == [next(iter(far.put)).rpartition("/")[0]]
    assert near.put == {}


def test_two_runs_that_give_weights_at_the_same_time(stand_ins, policy):
    """While one sends a copy, another one gives its own: what counts is who pauses last. And the one that finds the label of
    the other before it loads, gives way.
    """
    server = StandIn(far=True)
    sampler = stand_ins(server)

    server.then["PUT"] = lambda: setattr(server, "label", "theirs")
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.live_servers == 1
    assert server.label.endswith("version 2")
    server.then["/update_weight_version"] = lambda: setattr(server, "label", "loading theirs")
    sampler.load_weights(policy.state_dict(), 3)
    assert len(paths_of(server)) == 2
    assert "someone else gives it weights" in sampler.servers[0].said
    server.then.clear()
    until(lambda: sampler.live_servers == 1, 30)
    assert server.label.endswith("version 3")


def test_a_slow_server_holds_up_the_others_for_a_while(stand_ins, policy, prompts):
    """It reads weights that the run has replaced meanwhile: they are there as long as it may do so."""
    late, well = StandIn(), StandIn()
    sampler = stand_ins(late, well, timeout_s=3.0)
    late.then = {"/pause": lambda: time.sleep(1.7), "/update_weight_version": lambda: time.sleep(1.7)}
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.live_servers == 1
    late.then = {}
    sampler.load_weights(policy.state_dict(), 3)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    until(lambda: sampler.live_servers == 2, 30)
    assert [len(paths_of(late)), len(late.read)] == [3, 3]


@pytest.mark.needs("vllm")
def test_what_a_server_does_with_an_upload(tmp_path):
    """Files of one sender and number are together, others delete them; other paths are those of the application inside."""
    from starlette.responses import Response

    from dash_exp.sampling import upload

    async def talk():
        app = upload.Upload(Response(status_code=418))
        app.room = Room(str(tmp_path))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:

            async def put(path):
                return Path((await client.put(f"{UPLOAD}/{path}", content=path.encode())).text)

            async def sees(folder):
                return (await client.get(UPLOAD, params={"folder": str(folder)})).status_code == 200

            folder = await put("ab/1/a.bin")
            assert folder == await put("ab/1/b.bin")
            assert {f.name: f.read_text() for f in folder.iterdir()} == {"a.bin": "ab/1/a.bin", "b.bin": "ab/1/b.bin"}
            assert await sees(folder) and not await sees(folder / "x")
            new = await put("ab/2/a.bin")
            assert not folder.exists() and new.exists()
            other = await put("cd/2/a.bin")
            assert not new.exists()
            for sender, there in (("ab", True), ("cd", False)):
                assert (await client.delete(f"{UPLOAD}/{sender}/2")).status_code == 200
                assert other.exists() == there
            for path in ("ab/1", "ab/1/..", "ab/1/a/b.bin", "x/1/a.bin", "ab/1/a.b.c"):
                assert (await client.put(f"{UPLOAD}/{path}", content=b"a")).status_code == 404
            assert (await client.put("/elsewhere")).status_code == 418
            for first in ("", "config.json"):
                small = Path((await client.put(f"{UPLOAD}/ab/3/{first}", content=b"a")).text) if first else None
                full = await client.put(f"{UPLOAD}/ab/3/a.bin", headers={"content-length": str(2**50)})
                assert (full.status_code, "GiB free" in full.text) == (507, True)
                assert small is None or not small.exists()
        app.room.close()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(talk())


def test_the_steps_with_an_adapter(stand_ins, policy, prompts, tmp_path):
    """Under a new name each time, and the one before it is forgotten; completions must be of that name. What is below is given
    once, and deleted then.
    """
    server = StandIn()
    adapted = adapter.add(policy, None, r=4)
    sampler = stand_ins(server, trained=adapted, weights_dir=str(tmp_path))
    sampler.load_weights(adapter.trained(adapted), 2)
    names = [sent["lora_name"] for route, sent in server.called if "lora_adapter" in route]
    assert names == [names[0], names[0], names[2]]
    assert names[2] != names[0]
    assert [set(files) for files in server.read] == [{"model.safetensors"}] + [{adapter.CONFIG, adapter.WEIGHTS}] * 2
    until(lambda: len([path for path in tmp_path.glob("*/*") if path.is_dir()]) == 1, 30)
    sampler.sample(prompts, 2, Sampling(3), KEY)
    assert {request["model"] for request in server.asked} == {names[2]}


def test_an_update_that_breaks(stand_ins, prompts, policy, caplog):
    """A server whose weights are whole afterwards is given them again; one that has lost some must be started again."""

    def looks():
        return sum(route == "/weight_checker" for route, _ in bad.called)

    bad, well = StandIn(), StandIn(slow)
    sampler = stand_ins(bad, well)
    bad.fails["reload_weights"] = 500
    sampler.load_weights(policy.state_dict(), 2)
    assert f"{bad.url} is lost (/collective_rpc: no)" in caplog.text
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    bad.fails.clear()
    until(lambda: sampler.live_servers == 2, 30)
    bad.fails = {"reload_weights": 500, "/weight_checker": 500}
    sampler.load_weights(policy.state_dict(), 3)
    bad.fails.pop("reload_weights")
    before = looks()
    time.sleep(0.5)
    assert looks() == before  # which takes long
    assert sampler.live_servers == 1
    assert "start it again" in sampler.servers[0].said
    bad.label, bad.fails = "default", {}
    until(lambda: sampler.live_servers == 2, 30)
    with pytest.raises(UserError, match=r"broke half-way: start it again \(/collective_rpc: no\)"):
        server = StandIn()
        server.fails = {"reload_weights": 500, "/weight_checker": 500}
        stand_ins(server)


def test_weights_must_be_complete(stand_ins, policy):
    sampler = stand_ins(StandIn())
    weights = policy.state_dict()
    with pytest.raises(ValueError, match=r"1 missing \['lm_head.weight'\]"):
        sampler.load_weights({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, 2)
    with pytest.raises(ValueError, match="1 of another shape"):
        sampler.load_weights(weights | {"model.norm.weight": torch.ones(3)}, 2)


def test_weights_are_there_as_long_as_anyone_refers_to_them(tmp_path):
    weights = Weights({"a": torch.ones(3)}, torch.float32, 1, Room(str(tmp_path)))
    server, folder = [weights], weights.folder()
    del weights
    assert folder.exists()
    server.clear()
    assert not folder.exists()


def test_folders_of_runs_that_were_killed_are_deleted(tmp_path, monkeypatch):
    """Those of this machine, whose locks are seen here."""
    monkeypatch.setattr(server_room, "NEW_S", -1.0)
    (tmp_path / f"{server_room.PREFIX}dead").mkdir()
    kept = [tmp_path / "dash_exp_weights@other@dead", tmp_path / "of_someone_else"]
    for folder in kept:
        folder.mkdir()
    living = Room(str(tmp_path))
    kept.append(living.folder(1).parent)
    Room(str(tmp_path)).folder(1)
    assert all(folder.exists() for folder in kept)
    assert not (tmp_path / f"{server_room.PREFIX}dead").exists()


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["ends", "is killed"])
def test_the_folder_that_vllm_starts_from(tmp_path, monkeypatch, end):
    """It is locked while vLLM runs, for which a stand-in says so, and deleted at its end, or later where it was killed."""
    monkeypatch.setattr(server_room, "NEW_S", -1.0)
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN_MAIN.format(end=end))
    folders = [tmp_path / f"{SERVED}1", tmp_path / "of_someone_else"]
    for folder in folders:
        folder.mkdir()
        command = [sys.executable, "-m", "dash_exp.sampling.vllm_main", "serve", str(folder)]
        variables = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{folder == folders[0]}\n", done.stderr
    assert [folder.exists() for folder in folders] == [bool(end), True]
    delete_left_behind(tmp_path, SERVED)
    assert [folder.exists() for folder in folders] == [False, True]


STAND_IN_MAIN = """
import os, signal, sys
from pathlib import Path
from dash_exp.core.process import in_use

def main():
    print(in_use(Path(sys.argv[2])), flush=True)
    {end}
"""


def test_a_folder_without_room_for_the_weights(tmp_path):
    with pytest.raises(UserError, match=r"rollout.sampler.weights_dir=.*GiB free, and the weights .* take 1048576.0"):
        Room(str(tmp_path)).folder(2**50)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        Room(str(tmp_path / "file")).folder(1)


def test_the_choice_of_transfer():
    assert nccl.chosen("auto", "cuda", "cuda")
    assert nccl.chosen("nccl", "cuda", "cuda")
    assert not nccl.chosen("folder", "cuda", "cuda")
    assert not nccl.chosen("auto", "cpu", "cuda")
    assert not nccl.chosen("auto", "cuda", "cpu")


@pytest.mark.needs("vllm")
def test_the_source_of_weights_names_all(policy):
    from dash_exp.sampling.engine import weight_shapes

    source = nccl.weight_source()
    source.tensors = policy.state_dict()
    assert "lm_head.weight" in source.tensors
    assert "lm_head.weight" not in dict(policy.named_parameters())
    metadata = source.metadata()
    assert [m.name for m in metadata] == [name for name, _ in source] == list(policy.state_dict())
    assert {m.name: m.shape for m in metadata} == weight_shapes(policy.config)
    assert {m.dtype for m in metadata} == {torch.float32}


def test_where_the_ranks_meet():
    host, port = nccl.meeting_point("http://127.0.0.1:8001")
    assert host == "127.0.0.1"
    assert 1024 < port < 2**16


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_nccl_that_fails(stand_ins, policy, prompts, monkeypatch, how):
    """It ends a run that starts. Later that server is lost, and its connection closed."""
    closed = []

    def send(self, tensors):
        if self.url != well.url:
            time.sleep(30 if how == "hangs" else 0)
            raise RuntimeError("duplicate GPU")

    def over_nccl():
        monkeypatch.setattr(nccl, "chosen", lambda *arguments: True)

    monkeypatch.setattr(nccl.Sender, "_send", send)
    monkeypatch.setattr(nccl.Sender, "close", lambda self: closed.append(self.url))
    why = "duplicate GPU" if how == "raises" else "not finished after 1 s"
    bad, well = StandIn(), StandIn()
    sampler = stand_ins(bad, well, give_up_s=1.0)
    over_nccl()
    sampler.load_weights(policy.state_dict(), 2)
    until(lambda: bad.url in closed, 30)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    with pytest.raises(UserError, match=rf"over NCCL \({why}\).*rollout.sampler.transfer=folder"):
        stand_ins(StandIn(), give_up_s=1.0)  # it gives the server its first weights
