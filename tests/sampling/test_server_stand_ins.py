"""Sampling servers that misbehave in one way each: stand-ins that speak the routes of `vllm serve`. Real ones are in
test_vllm_server.py.
"""

import asyncio
import json
import logging
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import safetensors.torch
import torch
from completions import ids_of
from servers import until

from dash_exp.core.errors import UserError
from dash_exp.models import adapter
from dash_exp.sampling import nccl, server_room, upload, vllm_server
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import fingerprint
from dash_exp.sampling.server_room import Room, machine
from dash_exp.sampling.server_weights import Weights
from dash_exp.sampling.vllm_server import VLLMServerSampler

KEY = (0, 3)


class StandIn(ThreadingHTTPServer):
    """A server that answers sampling requests as `script` says: a function for each request in turn, the last for all that
    follow. What it returns is the answer; it may raise.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script, **facts):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script = list(script) or [proper]
        self.facts = facts
        self.label = "default"
        self.tokens = 0
        self.asked = []  # each sampling request
        self.called = []  # (route, what was sent), of all others that change something
        self.read = []  # the files of each folder that it was given
        self.put = {}  # path -> file
        self.deleted = []  # paths
        self.fails = {}  # route -> status
        self.most_at_once = self.at_once = 0
        self.guard = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def do_GET(self):
        server = self.server
        answers = {
            "/v1/models": {
                "data": [
                    {"id": "dash", "max_model_len": server.facts.get("max_model_len", 2048)},
                    {"id": json.dumps(server.facts)},
                ]
            },
            "/weight_info": {"weight_version": server.label},
            "/metrics": f'vllm:generation_tokens_total{{model="dash"}} {server.tokens}\n'.encode(),
        }
        self.reply(answers[urlsplit(self.path).path])

    def do_PUT(self):
        self.server.put[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self.reply({"folder": "/there"})

    def do_DELETE(self):
        self.server.deleted.append(self.path)
        self.reply({})

    def do_POST(self):
        server, route = self.server, urlsplit(self.path).path
        sent = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
        if route in server.fails:
            self.reply({"error": {"message": "no"}}, server.fails[route])
        elif route != "/inference/v1/generate":
            server.called.append((route, sent))
            if route == "/update_weight_version":
                server.label = sent["new_version"]
            folder = (sent or {}).get("lora_path") or ((sent or {}).get("kwargs") or {}).get("weights_path")
            if folder and Path(folder).exists():
                server.read.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
            self.reply({"success": True})
        else:
            with server.guard:
                server.asked.append(sent)
                act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                answer = act(self, sent)
            finally:
                with server.guard:
                    server.at_once -= 1
            if answer is not None:
                self.reply(answer)


def answer(handler, request, token=5, **changes):
    """Made-up completions: they say the last token of their prompt, their seed as a place in the group, and a token."""
    parameters, label = request["sampling_params"], handler.server.label
    choices = []
    for i in range(parameters["n"]):
        ids = [request["token_ids"][-1], i, token]
        content = [{"token_id": t, "logprob": -1.0 - k} for k, t in enumerate(ids)]
        span = {"version": label, "start": 0, "end": 3}
        made = {"index": i, "finish_reason": "length", "stop_reason": None, "token_ids": ids, "logprobs": {"content": content}}
        choices.append(made | {"weight_versions": [span]} | changes)
    return {"model": request["model"], "choices": choices}


def proper(handler, request):
    with handler.server.guard:
        handler.server.tokens += 3
    return answer(handler, request)


def slow(handler, request):
    time.sleep(0.3)
    return proper(handler, request)


def good(completions, prompts, size=2):
    return ids_of(completions) == [(p.ids[-1], g, 5) for p in prompts for g in range(size)]


@pytest.fixture
def stand_ins(policy, tokenizer, monkeypatch, caplog):
    """A sampler with stand-ins for its servers, and the stand-ins."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(vllm_server, "PROBE_EVERY_S", 0.1)
    made = []

    def make(*servers, trained=policy, dtype=torch.float32, **settings):
        settings = {"max_sequences": 64, "timeout_s": 1.0, "give_up_s": 20.0} | settings
        sampler = VLLMServerSampler(trained, tokenizer, dtype, servers=[s.url for s in servers], **settings)
        for s in servers:
            fits = {"model": "x", "fingerprint": fingerprint(trained.config, sampler.updates.shapes), "lora_rank": 8}
            fits |= {"dtype": str(dtype).removeprefix("torch."), "max_sequences": 64, "device": "cpu", "machine": machine()}
            s.facts = fits | s.facts
        made.extend([sampler, *servers])
        sampler.load_weights(adapter.trained(trained), 1)
        return sampler

    yield make
    for each in made:
        each.close() if isinstance(each, VLLMServerSampler) else (each.shutdown(), each.server_close())


def cut_off(handler, request):
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(answer(handler, request)).encode()[:100])


def reset(handler, request):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hangs(handler, request):
    time.sleep(3)
    return answer(handler, request, token=6)  # too late


def changed(**changes):
    return lambda handler, request: answer(handler, request, token=6, **changes)


def spans(*labels):
    return [{"version": label, "start": i, "end": i + 1} for i, label in enumerate(labels)]


def too_few(handler, request):
    made = answer(handler, request, token=6)
    return made | {"choices": made["choices"][:1]}


BAD = {
    "cut off": cut_off,
    "reset": reset,
    "hangs": hangs,
    "not JSON": lambda handler, request: b"<html>",
    "not an answer": lambda handler, request: [1, 2],
    "other weights": changed(weight_versions=spans("default", "default", "default")),
    "no label": changed(weight_versions=None),
    "paused by someone": changed(finish_reason="abort"),
    "other tokenizer": changed(finish_reason="stop"),
    "not a token": changed(token_ids=[1, 2, 2**40]),
    "log-probabilities of others": changed(logprobs={"content": [{"token_id": 3, "logprob": -1.0}] * 3}),
    "no log-probabilities": changed(logprobs=None),
    "no completion": changed(token_ids=[]),
    "twice the first": changed(index=0),
    "too few": too_few,
    "other model": lambda handler, request: answer(handler, request, token=6) | {"model": "other"},
}


@pytest.mark.parametrize("act", BAD.values(), ids=BAD)
def test_every_prompt_comes_back_once(stand_ins, prompts, caplog, act):
    """Of two servers one misbehaves: what it did not finish goes to the other, what it did counts."""
    bad, well = StandIn(act, proper), StandIn(slow)
    sampler = stand_ins(bad, well)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert f"sampling server {bad.url} is lost" in caplog.text
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


def test_the_only_server_gets_them_again(stand_ins, prompts):
    """It still has the weights, and is not given them again."""
    bad = StandIn(too_few, proper)
    sampler = stand_ins(bad)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.resent_prompts) == (1, 0)
    assert len(bad.read) == 1


def test_a_server_is_lost_that_decodes_nothing(stand_ins, prompts, caplog):
    """It answers, and its label is right: someone has paused it. One that is slow is kept."""

    def paused(handler, request):
        until(lambda: "decoded nothing" in caplog.text, 10)

    def slower(handler, request):
        for _ in range(8):  # 2.4 s, with 1 s of patience
            time.sleep(0.3)
            handler.server.tokens += 1
        return answer(handler, request)

    sampler = stand_ins(StandIn(paused, proper), StandIn(slower))
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert caplog.text.count("is lost") == 1
    assert "is lost (it has decoded nothing for 1 s)" in caplog.text


def test_how_prompts_are_spread(stand_ins, prompts, monkeypatch):
    """4 prompts on 2 servers are 2 each at a time, also with room for 2 completions, since more wait there; else one group."""
    servers = StandIn(slow), StandIn(slow)
    sampler = stand_ins(*servers)
    for most, ahead, at_once in ((64, 2, 2), (2, 4, 2), (2, 1, 1)):
        monkeypatch.setattr(vllm_server, "AHEAD", ahead)
        sampler.max_sequences = most
        for s in servers:
            s.asked.clear()
            s.most_at_once = 0
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
        assert [len(s.asked) for s in servers] == [2, 2]
        assert {s.most_at_once for s in servers} == {at_once}
    assert sampler.active_servers == 2


def test_a_group_that_a_server_cannot_decode_at_a_time_is_cut(stand_ins, prompts):
    """The engine seeds member i of a request with the request's seed + i, so the noise stays that of the place in the group."""
    server = StandIn()
    sampler = stand_ins(server, max_sequences=4)
    sampler.sample(prompts[:1], 4, Sampling(3), KEY)
    sampler.max_sequences = 3
    completions = sampler.sample(prompts[:1], 4, Sampling(3), KEY)
    sampler.sample(prompts[:1], 1, Sampling(3, start=3), KEY)
    whole, *parts, alone = (r["sampling_params"] for r in server.asked)
    first, rest = sorted(parts, key=lambda r: r["seed"])  # they arrive in any order
    assert [r["n"] for r in (whole, first, rest, alone)] == [4, 3, 1, 1]
    assert [r["seed"] - whole["seed"] for r in (first, rest, alone)] == [0, 3, 3]
    assert [c.ids[1] for c in completions] == [0, 1, 2, 0]


def test_servers_that_are_not_there(policy, tokenizer, prompts, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        sampler = VLLMServerSampler(policy, tokenizer, servers=[url], max_sequences=4, timeout_s=1, give_up_s=1.5)
        sampler.load_weights(policy.state_dict(), 1)
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"no server was available for 1.5 s \({url}: .*connection attempts failed\)"):
            sampler.sample(prompts, 2, Sampling(3), KEY)
        assert 1.4 < time.monotonic() - start < 20
        sampler.close()
    assert "cannot be used" in caplog.text


def test_a_server_that_always_fails(stand_ins, prompts):
    """It answers when asked how it is, and to nothing else: that ends too."""
    sampler = stand_ins(StandIn(too_few), timeout_s=0.5, give_up_s=0.5)
    with pytest.raises(UserError, match="it sent 1 completions of a prompt instead of 2"):
        sampler.sample(prompts, 2, Sampling(3), KEY)


def test_a_request_that_is_wrong_ends_the_run(stand_ins, prompts):
    server = StandIn()
    sampler = stand_ins(server)
    server.fails["/inference/v1/generate"] = 400
    with pytest.raises(ValueError, match=r"the sampling server http://127.* answers"):
        sampler.sample(prompts, 2, Sampling(3), KEY)


@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        ({"fingerprint": "x", "model": "small"}, "has another model: small, where this run trains qwen2"),
        ({"dtype": "bfloat16"}, "has dtype bfloat16, where this run has float32"),
        ({"max_model_len": 100}, "has max_model_len 100, where this run has 2048"),
        ({"max_sequences": 63}, "has max_sequences 63, where this run has 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_servers_that_do_not_fit(stand_ins, prompts, facts, wrong):
    """At the start it ends the run; one that comes back so is left out, and the others go on."""
    with pytest.raises(UserError, match=wrong):
        stand_ins(StandIn(**facts))
    bad, well = StandIn(), StandIn(slow)
    sampler = stand_ins(bad, well)
    bad.script = [lambda handler, request: bad.facts.update(facts)]
    for _ in range(2):
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.live_servers) == (1, 1)
    until(lambda: wrong.split(".*")[0].split(":")[0] in sampler.servers[0].said, 10)


def test_other_settings_that_do_not_fit(stand_ins):
    stand_ins(StandIn(max_model_len=100), max_model_len=100)
    with pytest.raises(UserError, match="has no GPU, which transfer=nccl needs"):
        stand_ins(StandIn(), transfer="nccl")


def test_another_program_at_the_address(stand_ins, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(b"<html>"))
    with pytest.raises(UserError, match="is not a sampling server of dash_exp"):
        stand_ins(StandIn())


def test_addresses(policy, tokenizer):
    def urls(*servers):
        return [s.url for s in VLLMServerSampler(policy, tokenizer, servers=servers, max_sequences=4).servers]

    assert urls("http://A:1/", "http://a:2") == ["http://a:1", "http://a:2"]
    for servers, wrong in [
        (["http://a:1", "http://A:1/"], "http://A:1/: is listed twice"),
        (["a:1"], "a:1: is not the address of a server"),
        (["http://a:x"], "is not the address"),
        (["http://a:1/v1"], "is not the address"),
        ([], "is empty"),
    ]:
        with pytest.raises(UserError, match=wrong):
            urls(*servers)


# --- weights -----------------------------------------------------------------------------------------------------------


def test_the_steps_of_an_update(stand_ins, policy, tmp_path):
    """All names of the state dict, the tied head included, in the dtype of sampling; and no folder is used twice."""
    servers = StandIn(), StandIn()
    sampler = stand_ins(*servers, dtype=torch.bfloat16, weights_dir=str(tmp_path))
    steps = [route for route, _ in servers[0].called]
    rpc = ["/collective_rpc"] * 2
    assert steps == ["/pause", "/update_weight_version", *rpc, "/reset_prefix_cache", "/update_weight_version", "/resume"]
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
    sent = safetensors.torch.load(servers[1].read[1]["model.safetensors"])
    assert (sent["model.norm.weight"] == 3).all()
    paths = [sent["kwargs"].get("weights_path") for route, sent in servers[1].called if route == "/collective_rpc"]
    assert len({*paths}) == 3  # two, and None for what is no path
    assert not Path(paths[1]).exists() and Path(paths[3]).exists()
    sampler.close()
    assert list(tmp_path.iterdir()) == []


def test_servers_on_another_machine(stand_ins, policy, tmp_path):
    """They get a copy, which is deleted again; with a folder that they see they read that."""
    far, near = StandIn(machine="x"), StandIn()
    sampler = stand_ins(far, near)
    (file,) = far.put.values()
    assert file == near.read[0]["model.safetensors"]
    assert far.deleted == [next(iter(far.put)).rpartition("/")[0]]
    assert near.put == {}
    sampler.close()
    shared = StandIn(machine="x")
    stand_ins(shared, weights_dir=str(tmp_path))
    assert (shared.put, list(shared.read[0])) == ({}, ["model.safetensors"])


def test_what_a_server_does_with_an_upload(tmp_path):
    """Files of one number are together, a new number deletes them; other paths are those of the application inside."""

    async def inside(scope, receive, send):
        await upload.answer(send, 404, {})

    async def talk():
        app = upload.Upload(inside)
        app.room = Room(str(tmp_path))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            one, two = [await client.put(f"{upload.PATH}/ab/1/{name}.bin", content=name.encode()) for name in ("a", "b")]
            folder = Path(one.json()["folder"])
            assert one.json() == two.json()
            assert {f.name: f.read_text() for f in folder.iterdir()} == {"a.bin": "a", "b.bin": "b"}
            other = Path((await client.put(f"{upload.PATH}/cd/1/a.bin", content=b"a")).json()["folder"])
            new = Path((await client.put(f"{upload.PATH}/ab/2/a.bin", content=b"a")).json()["folder"])
            assert not folder.exists() and other.exists() and new.exists()
            assert (await client.delete(f"{upload.PATH}/ab/2")).status_code == 200
            assert not new.exists() and other.exists()
            for path in ("ab/1", "ab/1/..", "ab/1/a/b.bin", "x/1/a.bin", "ab/1/a.b.c"):
                assert (await client.put(f"{upload.PATH}/{path}", content=b"a")).status_code == 404
            full = await client.put(f"{upload.PATH}/ab/3/a.bin", headers={"content-length": str(2**50)})
            assert (full.status_code, "GiB free" in full.text) == (507, True)
        app.room.close()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(talk())


def test_the_steps_with_an_adapter(stand_ins, policy, prompts):
    """Under a new name each time, and the one before it is forgotten; completions must be of that name."""
    server = StandIn()
    adapted = adapter.add(policy, None, r=4)
    sampler = stand_ins(server, trained=adapted)
    sampler.load_weights(adapter.trained(adapted), 2)
    names = [sent["lora_name"] for route, sent in server.called if "lora_adapter" in route]
    assert names == [names[0], names[0], names[2]]
    assert names[2] != names[0]
    assert [set(files) for files in server.read] == [{"model.safetensors"}] + [{adapter.CONFIG, adapter.WEIGHTS}] * 2
    sampler.sample(prompts, 2, Sampling(3), KEY)
    assert {request["model"] for request in server.asked} == {names[2]}


def test_an_update_that_breaks(stand_ins, prompts, policy, caplog):
    """A server whose weights are whole afterwards is given them again; one that has lost some must be started again."""
    bad, well = StandIn(), StandIn(slow)
    sampler = stand_ins(bad, well)
    bad.fails["/collective_rpc"] = 500
    sampler.load_weights(policy.state_dict(), 2)
    assert f"{bad.url} is lost (/collective_rpc" in caplog.text
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    bad.fails.clear()
    until(lambda: sampler.live_servers == 2, 10)
    bad.fails = {"/collective_rpc": 500, "/weight_checker": 500}
    sampler.load_weights(policy.state_dict(), 3)
    bad.fails.pop("/collective_rpc")
    time.sleep(0.5)
    assert sampler.live_servers == 1
    assert "start it again" in sampler.servers[0].said
    bad.label, bad.fails = "default", {}
    until(lambda: sampler.live_servers == 2, 10)
    with pytest.raises(UserError, match=r"could not load the weights .*rollout.sampler.weights_dir"):
        server = StandIn()
        server.fails = {"/collective_rpc": 500, "/weight_checker": 500}
        stand_ins(server)


def test_weights_must_be_complete(stand_ins, policy):
    sampler = stand_ins(StandIn())
    weights = policy.state_dict()
    with pytest.raises(ValueError, match=r"1 missing \['lm_head.weight'\]"):
        sampler.load_weights({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, 2)
    with pytest.raises(ValueError, match="1 of another shape"):
        sampler.load_weights(weights | {"model.norm.weight": torch.ones(3)}, 2)


def test_weights_stay_while_a_server_reads_them(tmp_path):
    room = Room(str(tmp_path))
    weights = Weights({"a": torch.ones(3)}, torch.float32, 1, room)
    with weights.in_use() as used:
        weights.drop()
        assert used.folder().exists()
    assert not used.folder().exists()


def test_folders_of_runs_that_were_killed_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(server_room, "NEW_S", -1.0)
    (tmp_path / f"{server_room.PREFIX}dead").mkdir()
    (tmp_path / "of_someone_else").mkdir()
    living = Room(str(tmp_path))
    kept = living.folder(1).parent
    Room(str(tmp_path)).folder(1)
    assert kept.exists()
    assert not (tmp_path / f"{server_room.PREFIX}dead").exists()
    assert (tmp_path / "of_someone_else").exists()


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
def test_nccl_that_fails_ends_the_run(stand_ins, monkeypatch, how):
    def send(self, tensors):
        time.sleep(30 if how == "hangs" else 0)
        raise RuntimeError("duplicate GPU")

    monkeypatch.setattr(nccl, "chosen", lambda *arguments: True)
    monkeypatch.setattr(nccl.Sender, "_send", send)
    monkeypatch.setattr(vllm_server.Server, "gpus", lambda self: one())
    why = "duplicate GPU" if how == "raises" else "not finished after 1 s"
    with pytest.raises(UserError, match=rf"over NCCL \({why}\).*rollout.sampler.transfer=folder"):
        stand_ins(StandIn())  # it gives the server its first weights


async def one():
    return 1
