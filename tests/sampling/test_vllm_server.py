"""Sampling servers: the real ones, started, killed and stopped; and stand-ins that misbehave in one way each."""

import json
import logging
import signal
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import forked
import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from completions import ids_of
from conftest import SMALL, TRAIN, composed, environment
from omegaconf import OmegaConf
from servers import PATIENCE_S, Process, until

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.models import loading
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import token_logprobs
from dash_exp.sampling import nccl, vllm_server
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import Engine, group_seed, weight_shapes
from dash_exp.sampling.server import EngineServer, Job, RefusedError
from dash_exp.sampling.server_call import Call
from dash_exp.sampling.vllm_server import VLLMServerSampler

pytestmark = pytest.mark.needs("vllm")
KEY = (0, 3)


def as_bytes(policy, **changes):
    weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()} | changes
    return safetensors.torch.save({name: tensor for name, tensor in weights.items() if tensor is not None})


# --- real servers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    processes = [Process(folder, is_forked=False), Process(folder)]
    try:
        for process in processes:
            until(process.ready)
        yield processes
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def servers(running):
    """Two servers that are up, whatever the test before did to them."""
    for process in running:
        if process.process.poll() is not None:
            process.start()
        else:
            process.signal(signal.SIGCONT)
    for process in running:
        until(process.ready)
    return running


@pytest.fixture(scope="module")
def served_policy():
    architecture = OmegaConf.to_container(composed("model=tiny_random").model.architecture)
    torch.manual_seed(0)
    return loading.load_policy(
        "", architecture=architecture | {"initializer_range": 0.15}
    )  # at 0.3 float32 itself is off by 1.3e-4


@pytest.fixture(scope="module")
def many(tokenizer):
    texts = [f"{i}*{i + 1}-{i}=" for i in range(20)]
    return [Prompt(Problem(t, t, "1"), tuple(tokenizer(t).input_ids)) for t in texts]


@pytest.fixture
def sampler(served_policy, tokenizer, servers, monkeypatch):
    monkeypatch.setattr(vllm_server, "AHEAD", 1)  # with `max_sequences=4` a call takes some seconds, and no group waits
    made = []

    def make(*processes, **settings):
        settings = {"max_sequences": 64, "timeout_s": 30, "give_up_s": PATIENCE_S} | settings
        urls = [p.url for p in processes or servers]
        made.append(VLLMServerSampler(served_policy, tokenizer, servers=urls, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


LONG = Sampling(120)  # with 4 completions at a time, 20 groups take two servers some seconds


@pytest.fixture(scope="module")
def expected(running, served_policy, tokenizer, many):
    """What one server alone makes of `many`, everything at once."""
    alone = VLLMServerSampler(served_policy, tokenizer, servers=[running[0].url], max_sequences=512, timeout_s=PATIENCE_S)
    alone.load_weights(served_policy.state_dict(), 1)
    completions = alone.sample(many, 4, LONG, KEY)
    alone.close()
    return completions


def meanwhile(sampler, prompts, do, groups=1):
    """A sampling call; `do` runs as soon as some groups are there. Returns the completions, and what `do` returned."""
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sampler.sample, prompts, 4, LONG, KEY)
        until(lambda: sampling.done() or (sampler._call is not None and len(sampler._call.groups) >= groups))
        assert not sampling.done(), "the call was too short to do anything in the middle of it"
        done = do()
        return sampling.result(timeout=PATIENCE_S), done


def check_same(completions, expected):
    """The same ids in the same order. Log-probabilities differ in floating point, as batches are others.

    So where two tokens come within rounding of each other, a completion may go another way: at most one in a hundred does.
    """
    assert len(completions) == len(expected)
    pairs = [(a, b) for a, b in zip(completions, expected, strict=True) if np.array_equal(a.ids, b.ids)]
    assert len(pairs) >= len(expected) - max(1, len(expected) // 100)
    for completion, other in pairs:
        torch.testing.assert_close(torch.tensor(completion.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)
        assert completion.truncated == other.truncated


def test_two_servers_sample_what_one_does(sampler, servers, served_policy, many, expected):
    two = sampler()
    two.load_weights(served_policy.state_dict(), 1)
    assert (two.version, two.live_servers) == (1, 2)
    completions = two.sample(many, 4, LONG, KEY)
    check_same(completions, expected)
    assert (two.active_servers, two.resent_prompts) == (2, 0)
    assert {c.truncated for c in completions} == {True, False}
    samples = [Sample(many[i // 4].ids, c.ids, 0.0) for i, c in enumerate(completions)][:32]
    with torch.no_grad():
        of_policy = token_logprobs(served_policy, collate(samples, 0), temperature=1.0)
    for row, completion in enumerate(completions[:32]):
        theirs, ours = torch.tensor(completion.logprobs), of_policy[row, : len(completion.ids)]
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_other_settings_of_sampling(sampler, served_policy, tokenizer, many, expected):
    two = sampler()
    two.load_weights(served_policy.state_dict(), 1)
    for prompt, completion in zip(many[:3], two.sample(many[:3], 1, Sampling(8, temperature=0.0), ()), strict=True):
        greedy = served_policy.eval().generate(torch.tensor([prompt.ids]), max_new_tokens=8, do_sample=False)
        assert completion.ids.tolist() == greedy[0, len(prompt.ids) :].tolist()
    nucleus = two.sample(many[:2], 2, Sampling(8, temperature=0.7, top_p=0.5), KEY)
    assert [c.logprobs for c in nucleus] == [None] * 4
    again = two.sample(many[:2], 4, LONG, KEY)
    check_same(again, expected[:8])
    for completion, whole in zip(two.sample(many[:2], 4, replace(LONG, stop=("e", "1")), KEY), again, strict=True):
        ends = [n for n in range(1, 121) if {"e", "1"} & {*tokenizer.decode(whole.ids[n - 1 : n]).replace("<eos>", "")}]
        n = min([len(whole.ids), *ends])
        assert (completion.ids.tolist(), completion.stopped) == (whole.ids[:n].tolist(), n in ends)
        assert completion.truncated == (not completion.stopped and whole.truncated)
    assert ids_of(two.sample(many[:2], 4, LONG, (0, 4))) != ids_of(again)


def test_a_server_that_is_killed_and_started_again(sampler, servers, served_policy, many, expected, caplog):
    first, second = servers
    two = sampler(max_sequences=4, timeout_s=4)
    two.load_weights(served_policy.state_dict(), 1)
    completions, _ = meanwhile(two, many, second.kill)
    check_same(completions, expected)
    assert two.resent_prompts >= 1  # it had one group of four under way
    assert f"sampling server {second.url} is lost" in caplog.text
    assert "1 of its prompts go to the others" in caplog.text

    two.load_weights(served_policy.state_dict(), 2)  # which it does not hear of
    check_same(two.sample(many[:8], 4, LONG, KEY), expected[:32])
    assert (two.active_servers, two.live_servers) == (1, 1)

    # The other stops as well. A call that has no server left goes on when one is started again.
    def restart():
        first.signal(signal.SIGSTOP)
        second.start()

    completions, _ = meanwhile(two, many, restart)
    check_same(completions, expected)
    assert two.active_servers == 2
    assert second.health()["version"] == 2
    assert f"sampling server {second.url} is back, with weights of version 2" in caplog.text
    assert f"sampling server {first.url} is lost (no answer for 4 s)" in caplog.text
    first.signal(signal.SIGCONT)
    until(lambda: two.live_servers == 2)
    check_same(two.sample(many[:8], 4, LONG, KEY), expected[:32])
    assert two.active_servers == 2


def test_a_server_that_hangs(sampler, servers, served_policy, many, expected, caplog):
    """Stopped in the middle of a call, its prompts go to the other; let go on, it takes part again in the same call."""
    two = sampler(max_sequences=4, timeout_s=3)
    two.load_weights(served_policy.state_dict(), 1)

    def stop_for_a_while():
        servers[1].signal(signal.SIGSTOP)
        until(lambda: not two.servers[1].live)
        assert two._call is not None
        servers[1].signal(signal.SIGCONT)
        until(lambda: two.live_servers == 2)
        return two._call is not None  # still in it

    thrice = [replace(p, problem=replace(p.problem, id=f"{p.problem.id}{i}")) for i in range(3) for p in many]
    alone = sampler(servers[0])
    alone.load_weights(served_policy.state_dict(), 1)
    of_one = alone.sample(thrice, 4, LONG, KEY)
    alone.close()
    two.load_weights(served_policy.state_dict(), 2)
    completions, in_it = meanwhile(two, thrice, stop_for_a_while)
    check_same(completions, of_one)
    assert in_it
    assert two.resent_prompts >= 1
    assert f"{servers[1].url} is lost (no answer for 3 s); 1 of its prompts go to the others" in caplog.text
    assert f"{servers[1].url} is back, with weights of version 2" in caplog.text


def test_what_a_server_answers_late_does_not_count(sampler, servers, served_policy, many, expected):
    """Stopped with a request of version 1, it is let go on when version 2, of other weights, is sampled."""
    two = sampler(max_sequences=4, timeout_s=3)
    two.load_weights({name: tensor * 1.01 for name, tensor in served_policy.state_dict().items()}, 1)
    meanwhile(two, many[:10], lambda: servers[1].signal(signal.SIGSTOP))
    assert two.live_servers == 1
    two.load_weights(served_policy.state_dict(), 2)
    servers[1].signal(signal.SIGCONT)
    until(lambda: two.live_servers == 2)
    check_same(two.sample(many[:10], 4, LONG, KEY), expected[:40])
    assert two.active_servers == 2
    assert [s.health()["version"] for s in servers] == [2, 2]


def test_a_run_goes_on_while_a_server_is_killed_and_started_again(servers, tmp_path):
    """train.py with two servers: one dies in the middle, comes back, and every step has every completion of every prompt."""
    steps = 40
    urls = ",".join(p.url for p in servers)
    overrides = [*SMALL, "rollout=vllm_server", f"rollout.sampler.servers=[{urls}]"]
    overrides += [f"steps={steps}", "hydra.run.dir=run", f"eval.every={steps}"]
    output = tmp_path / "output.txt"

    def step(number):
        assert run.poll() in (None, 0), output.read_text()
        return (tmp_path / "run" / "completions" / f"step_{number:05}.jsonl").exists()

    with forked.Program(TRAIN, overrides, tmp_path, environment(tmp_path), output, output) as run:
        until(lambda: step(3))
        servers[1].kill()
        until(lambda: "is lost" in output.read_text())
        servers[1].start()
        until(lambda: "is back" in output.read_text() or run.poll() is not None)
        assert run.wait(timeout=PATIENCE_S) == 0, output.read_text()
    rows = read_metrics(tmp_path / "run" / "metrics.csv")[1:]
    assert [row["completions/sampled"] for row in rows] == [32] * steps
    for number in range(1, steps + 1):
        lines = (tmp_path / "run" / "completions" / f"step_{number:05}.jsonl").read_text().splitlines()
        assert Counter(Counter(json.loads(line)["prompt"] for line in lines).values()) == {4: 8}
    assert max(row["mismatch/max_nats"] for row in rows if row["mismatch/max_nats"] is not None) < 1e-3
    taking_part = [row["sampler/servers"] for row in rows]
    assert taking_part[0] == 2 and 1 in taking_part
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "done"


@pytest.mark.parametrize("version", [1, 9])
def test_weights_that_someone_else_put_there(sampler, servers, served_policy, many, expected, caplog, version):
    """Before a call and in the middle of one, under another number and under the same."""
    others = as_bytes(served_policy, **{"model.norm.weight": torch.full((128,), 0.5)})

    def interfere():
        url = f"{servers[0].url}/weights"
        assert httpx.put(url, params={"version": version}, content=others, timeout=PATIENCE_S).status_code == 200

    def interfere_again():
        until(lambda: two.live_servers == 2)
        time.sleep(0.2)  # it has prompts again
        interfere()
        return two._call is not None

    two = sampler(max_sequences=4)
    two.load_weights(served_policy.state_dict(), 1)
    interfere()
    completions, in_it = meanwhile(two, many, interfere_again)
    check_same(completions, expected)
    assert in_it
    assert caplog.text.count(f"{servers[0].url} is lost") >= 2
    assert "not of version 1" in caplog.text
    until(lambda: two.live_servers == 2)
    assert servers[0].health()["version"] == 1


def test_weights_must_be_complete(servers, served_policy, many):
    def put(body, version="3"):
        return httpx.put(f"{servers[0].url}/weights", params={"version": version}, content=body, timeout=PATIENCE_S)

    assert put(as_bytes(served_policy)).json()["version"] == 3
    refused = put(as_bytes(served_policy, **{"lm_head.weight": None}))
    assert (refused.status_code, servers[0].health()["version"]) == (400, None)
    assert "1 missing ['lm_head.weight']" in refused.text
    refused = put(as_bytes(served_policy, **{"model.norm.weight": torch.ones(3)}))
    assert (refused.status_code, "1 of another shape ['model.norm.weight']" in refused.text) == (400, True)
    assert put(b"no safetensors").status_code == 400
    assert put(as_bytes(served_policy), version="last").status_code == 400
    sample = {"version": 3, "prompts": [], "group_size": 1, "max_tokens": 1, "temperature": 1, "top_p": 1}
    refused = httpx.post(f"{servers[0].url}/sample", json=sample, timeout=PATIENCE_S)
    assert (refused.status_code, refused.text) == (409, "has weights of version None, not of version 3")


def test_engine_refuses_incomplete_weights(served_policy):
    weights = {name: tensor for name, tensor in served_policy.state_dict().items() if name != "lm_head.weight"}
    engine = SimpleNamespace(expected=weight_shapes(served_policy.config))
    with pytest.raises(ValueError, match=r"1 missing \['lm_head.weight'\]"):
        Engine.load(engine, weights)


def test_a_client_that_goes_away(servers, served_policy, many):
    """Its groups are dropped; while they are sampled there is a heartbeat."""
    url = servers[0].url
    put = httpx.put(f"{url}/weights", params={"version": 1}, content=as_bytes(served_policy), timeout=PATIENCE_S)
    prompts = [{"index": i, "ids": p.ids, "seed": group_seed(KEY, p)} for i, p in enumerate(many)]
    sample = {"version": 1, "prompts": prompts, "group_size": 8, "max_tokens": 1900, "temperature": 1, "top_p": 1}
    assert put.status_code == 200
    with httpx.stream("POST", f"{url}/sample", json=sample, timeout=PATIENCE_S) as response:
        lines = response.iter_lines()  # kept: with it the connection is closed
        assert any("alive" in json.loads(next(lines)) for _ in range(100))
        assert servers[0].health()["unfinished"] > 0
    until(lambda: servers[0].health()["unfinished"] == 0, 20)


def test_requests_that_cannot_be_met(servers, served_policy, many):
    url = servers[0].url
    httpx.put(f"{url}/weights", params={"version": 1}, content=as_bytes(served_policy), timeout=PATIENCE_S)

    def answer(**changes):
        prompts = [{"index": 0, "ids": [5, 6], "seed": 1}]
        request = {"version": 1, "prompts": prompts, "group_size": 1, "max_tokens": 4, "temperature": 1, "top_p": 1}
        response = httpx.post(f"{url}/sample", json=request | changes, timeout=PATIENCE_S)
        return response.status_code, response.text

    status, text = answer()
    assert (status, [list(json.loads(line)) for line in text.splitlines()]) == (
        200,
        [["index", "version", "completions"], ["done"]],
    )
    assert answer(version=2) == (409, "has weights of version 1, not of version 2")
    assert answer(load="another") == (409, "has weights of version 1, loaded by another client, not of version 1")
    assert answer(prompts=None)[0] == answer(group_size="x")[0] == answer(group_size=0)[0] == answer(max_tokens=0)[0] == 400
    assert answer(group_size=2, temperature=0) == (400, "n must be 1 when using greedy sampling, got 2.")
    too_long = {"prompts": [{"index": 0, "ids": [5, 6], "seed": 1}, {"index": 1, "ids": [5] * 2046, "seed": 1}]}
    assert answer(**too_long) == (
        400,
        "a prompt of 2046 tokens and a completion of up to 4 do not fit max_model_len=2048",
    )
    assert servers[0].health()["unfinished"] == 0
    assert httpx.post(f"{url}/transfer/nonsense?version=1").status_code == 404


def test_a_server_of_another_run(servers, tokenizer, served_policy):
    architecture = OmegaConf.to_container(composed("model=tiny_random").model.architecture)
    wider = loading.load_policy("", architecture=architecture | {"intermediate_size": 384})
    stranger = VLLMServerSampler(wider, tokenizer, servers=[servers[0].url], max_sequences=8)
    with pytest.raises(UserError, match=r"has another model: tiny_random \(qwen2, 1,117,312 .* this run trains qwen2, 920,704"):
        stranger.load_weights(wider.state_dict(), 1)
    stranger.close()
    # the same weights, but other heads
    heads = loading.load_policy("", architecture=architecture | {"num_attention_heads": 4, "num_key_value_heads": 4})
    stranger = VLLMServerSampler(heads, tokenizer, servers=[servers[0].url], max_sequences=8)
    with pytest.raises(UserError, match="has another model"):
        stranger.load_weights(heads.state_dict(), 1)
    stranger.close()
    stranger = VLLMServerSampler(served_policy, tokenizer, torch.bfloat16, servers=[servers[0].url], max_sequences=8)
    with pytest.raises(UserError, match="has dtype float32, where this run has bfloat16"):
        stranger.load_weights(served_policy.state_dict(), 1)
    stranger.close()


def test_one_server_under_two_addresses(servers, tokenizer, served_policy):
    urls = [servers[0].url, servers[0].url.replace("127.0.0.1", "localhost")]
    twice = VLLMServerSampler(served_policy, tokenizer, servers=urls, max_sequences=8)
    with pytest.raises(UserError, match="is the same server as"):
        twice.load_weights(served_policy.state_dict(), 1)
        until(lambda: twice.live_servers == 2 or twice._failure)
        twice.load_weights(served_policy.state_dict(), 1)
    twice.close()


# --- stand-ins ---------------------------------------------------------------------------------------------------------


class StandIn(ThreadingHTTPServer):
    """A server that answers sampling requests as `script` says: a function of the request, one for each request in turn, the
    last for all that follow. It writes with `say`, and may raise.
    """

    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script = list(script) or [proper]
        self.about = {}
        self.asked = []  # the indices of each sampling request
        self.puts = []  # bodies
        self.put_status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200, json.dumps(self.server.about).encode())

    def do_PUT(self):
        self.server.puts.append(self.rfile.read(int(self.headers["content-length"])))
        self.server.about |= {"load": f"load {len(self.server.puts)}"}
        self.reply(self.server.put_status, json.dumps(self.server.about).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append([p["index"] for p in request["prompts"]])
        script = self.server.script
        act = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(200)
        self.end_headers()
        act(self, request)

    def say(self, line):
        self.wfile.write(line if isinstance(line, bytes) else (json.dumps(line) + "\n").encode())
        self.wfile.flush()


def group(index, size, version=1, token=5):
    """Made-up completions of a prompt: they say its index, their place in the group, and a token."""
    return {
        "index": index,
        "version": version,
        "completions": [{"ids": [index, g, token], "logprobs": [-1.0, -2.0, -3.0]} for g in range(size)],
    }


def proper(handler, request):
    for prompt in request["prompts"]:
        handler.say(group(prompt["index"], request["group_size"]))
    handler.say({"done": len(request["prompts"])})


def good(completions, prompts, size=2):
    return ids_of(completions) == [(i, g, 5) for i in range(len(prompts)) for g in range(size)]


@pytest.fixture
def stand_ins(policy, tokenizer, monkeypatch):
    """A sampler with stand-ins for its servers, and the stand-ins."""
    monkeypatch.setattr(vllm_server, "PROBE_EVERY_S", 0.1)
    made = []

    def make(*servers, **settings):
        settings = {"max_sequences": 64, "timeout_s": 1.0, "give_up_s": 20.0} | settings
        sampler = VLLMServerSampler(policy, tokenizer, servers=[s.url for s in servers], **settings)
        for s in servers:
            fits = {**sampler.expects, "model": "x", "max_model_len": 2048, "max_sequences": 64, "device": "cpu", "boot": s.url}
            s.about = fits | {"version": None, "load": None} | s.about
        made.extend([sampler, *servers])
        sampler.load_weights(policy.state_dict(), 1)
        return sampler

    yield make
    for each in made:
        each.close() if isinstance(each, VLLMServerSampler) else (each.shutdown(), each.server_close())


def twice_and_foreign(handler, request):
    for prompt in request["prompts"]:
        handler.say(group(prompt["index"], 2))
        handler.say(group(prompt["index"], 2, token=6))
        handler.say(group(1000 + prompt["index"], 2))
    handler.say({"done": 1})


def cut_off(handler, request):
    handler.say(group(request["prompts"][0]["index"], 2))
    handler.say(json.dumps(group(request["prompts"][-1]["index"], 2))[:25].encode())


def ends_early(handler, request):
    handler.say({"done": 0})


def reset(handler, request):
    handler.say(group(request["prompts"][0]["index"], 2))
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def another_version(handler, request):
    handler.say(group(request["prompts"][0]["index"], 2, version=0, token=6))


def too_few(handler, request):
    handler.say(group(request["prompts"][0]["index"], 1, token=6))


def not_ours(handler, request):
    handler.say([1, 2])


def not_a_token(handler, request):
    handler.say(group(request["prompts"][0]["index"], 2, token=2**40))


def replaced(handler, request):
    handler.say({"error": "the weights were replaced"})


def hangs(handler, request):
    handler.say(group(request["prompts"][0]["index"], 2))
    time.sleep(3)
    for prompt in request["prompts"]:  # too late
        handler.say(group(prompt["index"], 2, token=6))


BAD = [cut_off, ends_early, reset, another_version, too_few, not_ours, not_a_token, replaced, hangs]


@pytest.mark.parametrize("act", BAD, ids=lambda act: act.__name__)
def test_every_prompt_comes_back_once(stand_ins, prompts, caplog, act):
    """Of two servers one misbehaves: what it did not finish goes to the other, what it did counts."""
    bad, well = StandIn(act, proper), StandIn(lambda handler, request: (time.sleep(0.3), proper(handler, request)))
    sampler = stand_ins(bad, well)
    until(lambda: sampler.live_servers == 2)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert f"sampling server {bad.url} is lost" in caplog.text
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


@pytest.mark.parametrize("act", BAD, ids=lambda act: act.__name__)
def test_the_only_server_gets_them_again(stand_ins, prompts, act):
    bad = StandIn(act, proper)
    sampler = stand_ins(bad)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.resent_prompts) == (1, 0)
    assert len(bad.asked) == 2
    assert len(bad.puts) == 1  # it still had the weights


def test_lines_that_come_twice_or_were_not_asked_for(stand_ins, prompts):
    sampler = stand_ins(StandIn(twice_and_foreign))
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


def test_a_heartbeat_keeps_a_slow_server(stand_ins, prompts, caplog):
    def slow(handler, request):
        for step in range(8):  # 2.4 s, with 1 s of patience
            time.sleep(0.3)
            handler.say({"alive": step})
        proper(handler, request)

    sampler = stand_ins(StandIn(slow))
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert "lost" not in caplog.text


def test_how_prompts_are_spread(stand_ins, prompts, monkeypatch):
    """4 prompts on 2 servers are 2 each, also with room for 2 completions, since more wait there; else one group at a time."""

    def slow(handler, request):
        time.sleep(0.3)
        proper(handler, request)

    servers = StandIn(slow), StandIn(slow)
    sampler = stand_ins(*servers)
    until(lambda: sampler.live_servers == 2)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert sampler.active_servers == 2
    assert sorted(len(a) for s in servers for a in s.asked) == [2, 2]
    for ahead, taken in ((4, {2: 2}), (1, {1: 4})):
        monkeypatch.setattr(vllm_server, "AHEAD", ahead)
        sampler.max_sequences = 2
        for s in servers:
            s.asked.clear()
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
        assert Counter(len(a) for s in servers for a in s.asked) == taken
        assert sorted(i for s in servers for a in s.asked for i in a) == [0, 1, 2, 3]
    sampler.max_sequences = 1  # less than a group: one group all the same
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


def test_servers_that_are_not_there(stand_ins, policy, tokenizer, prompts, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        sampler = VLLMServerSampler(policy, tokenizer, servers=[url], max_sequences=4, timeout_s=1, give_up_s=1.5)
        sampler.load_weights(policy.state_dict(), 1)
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"no server was available for 1.5 s \({url}: .*refused\)"):
            sampler.sample(prompts, 2, Sampling(3), KEY)
        assert 1.4 < time.monotonic() - start < 20
        sampler.close()
    assert "does not answer" in caplog.text


def test_a_server_that_always_fails(stand_ins, prompts):
    """It answers when asked how it is, and to nothing else: that ends too."""
    sampler = stand_ins(StandIn(ends_early), timeout_s=0.5, give_up_s=0.5)
    with pytest.raises(UserError, match="its answer ended early"):
        sampler.sample(prompts, 2, Sampling(3), KEY)


def test_what_a_server_cannot_take_ends_the_run(stand_ins, monkeypatch):
    """Also where the thread of the server is slow to go on after it has lost it."""
    lose = VLLMServerSampler._lose
    monkeypatch.setattr(VLLMServerSampler, "_lose", lambda *arguments: (lose(*arguments), time.sleep(0.5)))
    server = StandIn()
    server.put_status = 400
    with pytest.raises(ValueError, match=r"the sampling server http://127.* answers"):
        stand_ins(server, timeout_s=60.0)  # a server that takes longer is tried again later, and nothing is raised here


def test_servers_that_do_not_fit(stand_ins, prompts):
    for about, wrong in [
        ({"fingerprint": "x", "model": "small"}, "has another model: small, where this run trains qwen2"),
        ({"dtype": "bfloat16"}, "has dtype bfloat16, where this run has float32"),
        ({"eos_ids": [7]}, r"has eos_ids \[7\], where this run has \[1\]"),
        ({"max_model_len": 100}, "has max_model_len 100, where this run has 2048"),
    ]:
        server = StandIn()
        server.about = about
        with pytest.raises(UserError, match=wrong):
            stand_ins(server)
    server = StandIn()
    server.about = {"max_model_len": 100}
    assert good(stand_ins(server, max_model_len=100).sample(prompts, 2, Sampling(3), KEY), prompts)
    with pytest.raises(UserError, match="has no GPU, which transfer=nccl needs"):
        stand_ins(StandIn(), transfer="nccl")


def test_another_program_at_the_address(stand_ins, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(200, b"<html>"))
    with pytest.raises(UserError, match="is not a sampling server of dash_exp"):
        stand_ins(StandIn())


def test_a_server_that_comes_back_as_another_is_left_out(stand_ins, prompts):
    """The run goes on with the others."""
    bad, well = StandIn(), StandIn()
    sampler = stand_ins(bad, well)
    until(lambda: sampler.live_servers == 2)
    bad.script = [lambda handler, request: bad.about.update(fingerprint="another")]
    well.script = [lambda handler, request: (time.sleep(0.2), proper(handler, request))]
    for _ in range(3):
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.live_servers) == (1, 1)
    assert "another model" in sampler.servers[0].said


def test_a_stranger_that_appears_late_is_left_out(policy, tokenizer):
    """At the start it ends the run. Later the others go on, also where a refresh is under way and there is no version."""
    sampler = VLLMServerSampler(policy, tokenizer, servers=["http://127.0.0.1:1"], max_sequences=4)
    with pytest.raises(UserError, match="is not a sampling server of dash_exp"):
        sampler._check_fit(sampler.servers[0], {})
    sampler._begun = True
    with pytest.raises(vllm_server.LostError, match="is not a sampling server of dash_exp"):
        sampler._check_fit(sampler.servers[0], {})


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


def test_what_goes_over_http(stand_ins, policy):
    """All names of the state dict, the tied head included, in the dtype of sampling; later versions in place of it."""
    servers = StandIn(), StandIn()
    sampler = stand_ins(*servers, compute_dtype=torch.bfloat16)
    until(lambda: sampler.live_servers == 2)
    sent = safetensors.torch.load(servers[0].puts[0])
    assert servers[0].puts == servers[1].puts
    assert sent.keys() == policy.state_dict().keys() >= {"lm_head.weight"}
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(sent[name], tensor.to(torch.bfloat16))
    with torch.no_grad():
        policy.model.norm.weight.fill_(3.0)
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.version == 2
    sent = safetensors.torch.load(servers[1].puts[1])
    assert (sent["model.norm.weight"] == 3).all()


def test_the_choice_of_transfer():
    assert nccl.chosen("auto", "cuda", "cuda")
    assert nccl.chosen("nccl", "cuda", "cuda")
    assert not nccl.chosen("http", "cuda", "cuda")
    assert not nccl.chosen("auto", "cpu", "cuda")
    assert not nccl.chosen("auto", "cuda", "cpu")


def test_the_source_of_weights_names_all(policy):
    source = nccl.weight_source()
    source.tensors = policy.state_dict()
    assert "lm_head.weight" in source.tensors
    assert "lm_head.weight" not in dict(policy.named_parameters())
    metadata = source.metadata()
    assert [m.name for m in metadata] == [name for name, _ in source] == list(policy.state_dict())
    assert {m.name: m.shape for m in metadata} == weight_shapes(policy.config)
    assert {m.dtype for m in metadata} == {torch.float32}


def test_the_sender_is_what_vllm_drives():
    nccl.import_vllm()
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    assert isinstance(nccl.Sender(httpx.Client(), torch.device("cpu"), 1.0), VLLMWeightSyncClient)


def test_where_the_ranks_meet():
    host, port = nccl.meeting_point(httpx.URL("http://127.0.0.1:8001"))
    assert host == "127.0.0.1"
    assert 1024 < port < 2**16


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_nccl_that_fails_ends_the_run(stand_ins, monkeypatch, how):
    def send(self, tensors):
        time.sleep(30 if how == "hangs" else 0)
        raise RuntimeError("duplicate GPU")

    monkeypatch.setattr(nccl, "chosen", lambda *arguments: True)
    monkeypatch.setattr(nccl.Sender, "_send", send)
    why = "duplicate GPU" if how == "raises" else "not finished after 1 s"
    with pytest.raises(UserError, match=rf"over NCCL \({why}\).*rollout.sampler.transfer=http"):
        stand_ins(StandIn())  # it gives the server its first weights


class FakeEngine:
    """What `EngineServer` asks of an engine, without one."""

    def __init__(self):
        self.expected = {"a": (2, 3), "b": (4,)}
        self.did = []
        self.llm = SimpleNamespace(collective_rpc=lambda step, args: self.did.append((step, *args)))

    def add(self, ids, group_size, sampling, seed):
        return f"group {seed}"

    def abort(self, groups):
        self.did.append(("abort", *groups))

    def abort_all(self):
        self.did.append(("abort_all",))

    def drop_adapter(self):
        self.did.append(("drop_adapter",))

    def forget(self):
        self.did.append(("forget",))


def test_the_steps_of_a_transfer():
    engine = FakeEngine()
    server = EngineServer(engine, "cuda", {})
    server.version, server.load = 1, "x"
    lines = []
    server.add(Job(1, "x", [(0, [5], 7), (1, [5], 8)], 2, Sampling(3)), lines.append)
    server.transfer("init_weight_transfer_engine", {"rank_offset": 1}, 2)
    assert server.version == 1
    server.transfer("start_weight_update", None, 2)
    assert (server.version, server.load, lines) == (None, None, [{"error": "the weights were replaced"}])
    with pytest.raises(RefusedError, match=r"1 missing \['b'\]"):
        server.transfer("update_weights", {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}, 2)
    whole = {"names": ["a", "b"], "dtype_names": ["float32"] * 2, "shapes": [[2, 3], [4]]}
    server.transfer("update_weights", whole, 2)
    assert server.version is None
    assert server.transfer("finish_weight_update", None, 2)["version"] == 2
    assert engine.did == [
        ("init_weight_transfer_engine", {"rank_offset": 1}),
        ("abort_all",),
        ("start_weight_update",),
        ("update_weights", whole),
        ("finish_weight_update",),
        ("drop_adapter",),
        ("forget",),
    ]


@pytest.fixture(autouse=True)
def warnings_are_kept(caplog):
    caplog.set_level(logging.WARNING)


def test_the_rest_of_a_group_is_asked_for_with_the_seeds_of_its_members(prompts):
    """The engine seeds member i of a request with the request's seed + i."""
    whole, rest = (Call(prompts, 4, Sampling(8, start=start), KEY, 0).request([0, 1], None)["prompts"] for start in (0, 3))
    assert [r["seed"] - w["seed"] for w, r in zip(whole, rest, strict=True)] == [3, 3]
