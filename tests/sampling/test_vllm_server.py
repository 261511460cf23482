"""Real sampling servers, started, killed and stopped: two for all tests, as their start takes longest. Other ways to misbehave
are in test_server_stand_ins.py.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import forked
import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from completions import ids_of
from conftest import SMALL, TRAIN, composed, environment
from omegaconf import OmegaConf
from servers import PATIENCE_S, START_S, Process, command_line, descendants, until

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.models import adapter, loading
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import token_logprobs
from dash_exp.sampling import server_room, vllm_server
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.server_link import ROUTES, Server
from dash_exp.sampling.vllm_server import VLLMServerSampler

pytestmark = pytest.mark.needs("vllm")
KEY = (0, 3)
LONG = Sampling(120)  # with 4 completions at a time, 40 groups take two quick servers some seconds
TRANSFER = ["init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"]  # by vLLM's client


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The second one takes adapters too."""
    folder = tmp_path_factory.mktemp("servers")
    processes = [Process(folder, is_forked=False), Process(folder, "model.adapter=lora", "model.lora.r=4")]
    try:
        for process in processes:
            until(process.ready, START_S)
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
        process.go_on()
    for process in running:
        until(process.ready, START_S)
    return running


@pytest.fixture(scope="module")
def architecture():
    shape = OmegaConf.to_container(composed("model=tiny_random").model.architecture)
    return shape | {"initializer_range": 0.15}  # at 0.3 float32 itself is off by 1.3e-4


@pytest.fixture(scope="module")
def served_policy(architecture):
    torch.manual_seed(0)
    return loading.load_policy("", architecture=architecture)


@pytest.fixture(scope="module")
def many(tokenizer):
    texts = [f"{i}*{i + 1}-{i}=" for i in range(40)]
    return [Prompt(Problem(t, t, "1"), tuple(tokenizer(t).input_ids)) for t in texts]


@pytest.fixture
def sampler(served_policy, tokenizer, servers, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(vllm_server, "AHEAD", 1)  # with `max_sequences=4` a call takes some seconds, and no group waits
    made = []

    def make(*processes, policy=served_policy, dtype=torch.float32, **settings):
        settings = {"max_sequences": 64, "timeout_s": 30, "give_up_s": 120} | settings
        urls = [getattr(p, "url", p) for p in processes or servers]
        made.append(VLLMServerSampler(policy, tokenizer, dtype, servers=urls, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def expected(running, served_policy, tokenizer, many):
    """What one server alone makes of `many`, everything at once."""
    alone = VLLMServerSampler(served_policy, tokenizer, servers=[running[0].url], max_sequences=64, timeout_s=PATIENCE_S)
    alone.load_weights(served_policy.state_dict(), 1)
    completions = alone.sample(many, 4, LONG, KEY)
    alone.close()
    return completions


def meanwhile(sampler, prompts, do, groups=1):
    """A sampling call; `do` runs as soon as some groups are there. Returns the completions, and what `do` returned."""
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sampler.sample, prompts, 4, LONG, KEY)
        until(lambda: sampling.done() or (sampler._call is not None and len(sampler._call.found) >= groups))
        assert not sampling.done(), "the call was too short to do anything in the middle of it"
        done = do()
        return sampling.result(timeout=START_S), done


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


def check_policy(policy, prompts, completions):
    """Their log-probabilities are those that the policy gives them."""
    group = len(completions) // len(prompts)
    batch = collate([Sample(prompts[i // group].ids, c.ids, 0.0, c.logprobs) for i, c in enumerate(completions)], 0)
    with torch.no_grad():
        logprobs_BT = token_logprobs(policy, batch, temperature=1.0)
    torch.testing.assert_close(logprobs_BT, batch.old_logprobs_BT, atol=1e-4, rtol=0)


def written(policy, folder, **changes):
    """A folder with the policy's weights, as another client would make it."""
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in policy.state_dict().items()} | changes
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_routes_are_those_of_this_version(servers):
    """On the server that takes adapters, where there are all of them."""
    paths = servers[1].call("GET", "/openapi.json").json()["paths"]
    here = {route for route, method in ROUTES.items() if method.lower() in paths.get(route, {})}
    assert ROUTES.keys() - here <= {"/metrics"}
    assert all("post" in paths[f"/{route}"] for route in [*TRANSFER, "shutdown_weight_transfer_engine"])
    lines = servers[1].call("GET", "/metrics").text.splitlines()
    assert any(line.startswith("vllm:generation_tokens_total") for line in lines)
    parameters = servers[1].call("GET", "/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]
    assert {"model", "token_ids", "sampling_params"} <= parameters.keys()


def test_two_servers_sample_what_one_does(sampler, servers, served_policy, many, expected):
    two = sampler()
    two.load_weights(served_policy.state_dict(), 1)
    assert (two.version, two.live_servers) == (1, 2)
    completions = two.sample(many, 4, LONG, KEY)
    check_same(completions, expected)
    assert (two.active_servers, two.resent_prompts) == (2, 0)
    assert {c.truncated for c in completions} == {True, False}
    check_policy(served_policy, many, completions)


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
    two.max_sequences = 3  # a group of 4 is asked for in two requests
    check_same(two.sample(many[:2], 4, LONG, KEY), expected[:8])
    with pytest.raises(ValueError, match=r"a prompt of .* and a completion of up to 2048 do not fit max_model_len=2048"):
        two.sample(many[:1], 4, Sampling(2048), KEY)
    with pytest.raises(UserError, match=r"was not answered as it should 3 times, last: .*greedy"):
        two.sample(many[:1], 2, Sampling(8, temperature=0.0), KEY)


def test_weights_are_sent_to_servers_that_do_not_see_the_folder(
    sampler, servers, served_policy, many, expected, monkeypatch, tmp_path
):
    """As if they were on another machine. While the first copy is on its way, another client gives that server its weights."""
    others = written(served_policy, tmp_path / "others", **{"model.norm.weight": torch.full((128,), 0.5)})
    sent = []
    sees, upload = Server.sees, Server.upload

    async def only_copies(server, folder):
        return folder in sent and await sees(server, folder)

    async def noted(server, folder):
        copy = await upload(server, folder)
        sent.append(copy)
        if server.url == servers[0].url:
            await asyncio.to_thread(servers[0].update, others, "theirs")
        return copy

    monkeypatch.setattr(Server, "sees", only_copies)
    monkeypatch.setattr(Server, "upload", noted)
    two = sampler()
    two.load_weights(served_policy.state_dict(), 1)
    check_same(two.sample(many[:4], 4, LONG, KEY), expected[:16])
    assert len({*sent}) == 2
    assert not any(folder.exists() for folder in sent)


def test_the_adapter_alone_after_the_base_weights(sampler, servers, tokenizer, many, architecture, monkeypatch):
    """A run that refreshes it, a second run, whose weights below the adapter are others, and one without an adapter."""
    written_bytes = []
    folder = server_room.Room.folder
    monkeypatch.setattr(server_room.Room, "folder", lambda self, size: (written_bytes.append(size), folder(self, size))[1])

    def agrees(one, policy, version):
        torch.manual_seed(version)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():  # PEFT begins with B = 0, which changes nothing
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        one.load_weights(adapter.trained(policy), version)
        check_policy(policy, many[:8], one.sample(many[:8], 4, Sampling(30), (0, version)))

    one, two = (loading.load_policy("", architecture=architecture, lora={"r": 4, "alpha": 8}) for _ in range(2))
    first = sampler(servers[1], policy=one)
    for version in (0, 1):
        agrees(first, one, version)
    adapter_bytes, base_bytes, again = written_bytes
    assert adapter_bytes == again < 0.1 * base_bytes
    agrees(sampler(servers[1], policy=two), two, 0)
    agrees(first, one, 2)  # whose own weights are sent again
    assert len(written_bytes) == 7
    agrees(sampler(servers[1], policy=two, merge=True), two, 3)
    whole = loading.load_policy("", architecture=architecture)
    agrees(sampler(servers[1], policy=whole), whole, 0)
    more = loading.load_policy("", architecture=architecture, lora={"r": 8})
    with pytest.raises(UserError, match=r"was not started with model.adapter=lora model.lora.r=8"):
        agrees(sampler(servers[1], policy=more), more, 0)


@pytest.mark.parametrize("part", ["server", "EngineCore", "Worker"])
def test_a_server_that_hangs(sampler, servers, served_policy, many, expected, caplog, part):
    """Stopped in the middle of a call, its prompts go to the other; let go on, it takes part again."""
    two = sampler(max_sequences=4, timeout_s=10)
    two.load_weights(served_policy.state_dict(), 1)
    completions, _ = meanwhile(two, many, lambda: servers[1].stop(part))
    check_same(completions, expected)
    assert two.resent_prompts >= 1
    assert f"{servers[1].url} is lost (no answer for 10 s); its prompts go to the others" in caplog.text
    servers[1].go_on()
    until(lambda: two.live_servers == 2)
    assert f"{servers[1].url} is back, with weights of version 1" in caplog.text
    check_same(two.sample(many, 4, LONG, KEY), expected)
    assert two.active_servers == 2


def test_what_a_server_answers_late_does_not_count(sampler, servers, served_policy, many, expected):
    """Stopped with a request of version 1, it is let go on when version 2, of other weights, is sampled."""
    two = sampler(max_sequences=4, timeout_s=10)
    two.load_weights({name: tensor * 1.01 for name, tensor in served_policy.state_dict().items()}, 1)
    meanwhile(two, many[:10], lambda: servers[1].stop())
    assert two.live_servers == 1
    two.load_weights(served_policy.state_dict(), 2)
    servers[1].go_on()
    until(lambda: two.live_servers == 2)
    check_same(two.sample(many[:10], 4, LONG, KEY), expected[:40])
    assert two.active_servers == 2
    assert ["version 2" in s.label() for s in servers] == [True, True]


def test_weights_that_someone_else_put_there(sampler, servers, served_policy, many, expected, caplog, tmp_path):
    """Before a call and in the middle of one."""
    others = written(served_policy, tmp_path / "others", **{"model.norm.weight": torch.full((128,), 0.5)})
    two = sampler(max_sequences=4)

    def interfere_again():
        until(lambda: two.live_servers == 2)
        time.sleep(0.2)  # it has prompts again
        servers[0].update(others, "theirs again")
        return two._call is not None

    two.load_weights(served_policy.state_dict(), 1)
    servers[0].update(others, "theirs")
    completions, in_it = meanwhile(two, many, interfere_again)
    check_same(completions, expected)
    assert in_it
    assert caplog.text.count(f"{servers[0].url} is lost") >= 2
    until(lambda: two.live_servers == 2)
    assert "version 1" in servers[0].label()


def test_a_trainer_that_died_inside_an_update_leaves_a_server_that_can_be_used(
    sampler, servers, served_policy, many, expected, tmp_path
):
    """Before it has asked for the weights to be loaded, and after: the server loads what nobody waits for."""
    others = written(served_policy, tmp_path / "others", **{"model.norm.weight": torch.full((128,), 0.5)})

    def checksums(server):
        return server.call("POST", "/weight_checker", json={"action": "checksum"}).text

    servers[0].begin_update("of a run that is gone")
    servers[1].begin_update("of a run that is gone")
    before = checksums(servers[1])
    servers[1].stop("Worker")
    with pytest.raises(httpx.ReadTimeout):  # its connection is closed, as that of a process which is killed
        servers[1].rpc("reload_weights", seconds=1, weights_path=str(others))
    servers[1].go_on()
    assert checksums(servers[1]) != before  # it is asked after the weights were loaded
    next_run = sampler()
    next_run.load_weights(served_policy.state_dict(), 1)
    check_same(next_run.sample(many, 4, LONG, KEY), expected)
    assert (next_run.active_servers, next_run.resent_prompts) == (2, 0)


def test_a_client_that_goes_away(sampler, servers, served_policy, many):
    """What it waits for is dropped."""

    def busy():
        lines = servers[0].call("GET", "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))

    one = sampler(servers[0])
    one.load_weights(served_policy.state_dict(), 1)
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(one.sample, many, 4, Sampling(1900), KEY)
        until(busy)
        one.close()
        with pytest.raises(RuntimeError, match="were closed"):
            sampling.result(PATIENCE_S)
    until(lambda: not busy(), 20)


def test_servers_that_do_not_fit(sampler, servers, served_policy, architecture):
    def refused(says, *processes, **settings):
        stranger = sampler(*processes or servers[:1], **settings)
        with pytest.raises(UserError, match=says):
            stranger.load_weights(stranger.updates.policy.state_dict(), 1)
        stranger.close()

    wider = loading.load_policy("", architecture=architecture | {"intermediate_size": 384})
    refused(r"has another model: tiny_random \(qwen2, 1,117,312 .* this run trains qwen2, 920,704", policy=wider)
    # the same weights, but other heads
    heads = loading.load_policy("", architecture=architecture | {"num_attention_heads": 4, "num_key_value_heads": 4})
    refused("has another model", policy=heads)
    refused("has dtype float32, where this run has bfloat16", dtype=torch.bfloat16)
    refused("has max_sequences 64, where this run has 65", max_sequences=65)
    refused("is the same server as", servers[0].url, servers[0].url.replace("127.0.0.1", "localhost"))


def test_a_server_that_is_killed_and_started_again(sampler, servers, served_policy, many, expected, caplog):
    first, second = servers
    two = sampler(max_sequences=4, timeout_s=10, give_up_s=START_S)
    two.load_weights(served_policy.state_dict(), 1)
    below = descendants(second.process.pid)
    completions, _ = meanwhile(two, many, second.kill)
    check_same(completions, expected)
    assert two.resent_prompts >= 1  # it had one group of four under way
    assert f"sampling server {second.url} is lost" in caplog.text
    until(lambda: not any(map(command_line, below)))

    two.load_weights(served_policy.state_dict(), 2)  # which it does not hear of
    check_same(two.sample(many[:8], 4, LONG, KEY), expected[:32])
    assert (two.active_servers, two.live_servers) == (1, 1)

    # The other stops as well. A call that has no server left goes on when one is started again.
    def restart():
        first.stop()
        second.start()

    completions, _ = meanwhile(two, many, restart)
    check_same(completions, expected)
    assert two.active_servers == 2
    assert "version 2" in second.label()
    assert f"sampling server {second.url} is back, with weights of version 2" in caplog.text
    assert f"sampling server {first.url} is lost (no answer for 10 s)" in caplog.text
    first.go_on()
    until(lambda: two.live_servers == 2)
    check_same(two.sample(many[:8], 4, LONG, KEY), expected[:32])
    assert two.active_servers == 2


def test_an_update_that_breaks_half_way(sampler, servers, served_policy, many, expected, caplog, monkeypatch, tmp_path):
    """That server must be started again, also for the next run, and says so. The other goes on."""
    broken = written(served_policy, tmp_path / "broken", **{"model.norm.weight": torch.ones(3)})
    two = sampler()
    two.load_weights(served_policy.state_dict(), 1)
    reload = type(two.servers[1]).reload
    paths = {two.servers[1]: broken}
    monkeypatch.setattr(type(two.servers[1]), "reload", lambda server, folder: reload(server, paths.get(server, folder)))
    two.load_weights(served_policy.state_dict(), 2)
    assert f"{servers[1].url} is lost (an update of its weights broke half-way: start it again" in caplog.text
    paths.clear()
    time.sleep(2)  # it is asked again
    assert two.live_servers == 1
    check_same(two.sample(many[:4], 4, LONG, KEY), expected[:16])
    next_run = sampler(servers[1], give_up_s=1)
    with pytest.raises(UserError, match="an update of its weights broke half-way: start it again"):
        next_run.load_weights(served_policy.state_dict(), 1)
    servers[1].kill()
    servers[1].start()
    until(lambda: two.live_servers == 2, START_S)
    check_same(two.sample(many[:4], 4, LONG, KEY), expected[:16])


def test_a_run_goes_on_while_a_server_loses_its_engine_and_is_started_again(servers, tmp_path):
    """train.py with two servers: one dies in the middle, comes back, and every step has every completion of every prompt."""
    steps = 40
    urls = ",".join(p.url for p in servers)
    overrides = [*SMALL, "rollout=vllm_server", f"rollout.sampler.servers=[{urls}]", "rollout.sampler.max_sequences=64"]
    overrides += [f"steps={steps}", "hydra.run.dir=run", f"eval.every={steps}"]
    output = tmp_path / "output.txt"

    def step(number):
        assert run.poll() in (None, 0), output.read_text()
        return (tmp_path / "run" / "completions" / f"step_{number:05}.jsonl").exists()

    with forked.Program(TRAIN, overrides, tmp_path, environment(tmp_path), output, output) as run:
        until(lambda: step(3))
        servers[1].kill("EngineCore")
        until(lambda: "is lost" in output.read_text() or run.poll() is not None)
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
