"""Sampling servers that misbehave in one way each: stand-ins. Their weights are in test_server_update.py, real servers in
test_vllm_server.py.
"""

import socket
import time

import pytest
from servers import until
from stand_in import (
    Handler,
    StandIn,
    answer,
    changed,
    cut_off,
    good,
    hangs,
    no_number,
    proper,
    reset,
    slow,
    spans,
    too_few,
)

from dash_exp.core.errors import UserError
from dash_exp.sampling import server_link, vllm_server
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.vllm_server import VLLMServerSampler

KEY = (0, 3)
LOST = {
    "cut off": cut_off,
    "reset": reset,
    "hangs": hangs,
    "other weights": changed(weight_versions=spans("default", "default", "default")),
    "no completion": changed(token_ids=[]),
    "other model": lambda handler, request: answer(handler, request, token=6) | {"model": "other"},
}
KEPT = {
    "not JSON": lambda handler, request: b"<html>",
    "not UTF-8": lambda handler, request: b"\xc3(",
    "not an answer": lambda handler, request: [1, 2],
    "no label": changed(weight_versions=None),
    "paused by someone": changed(finish_reason="abort"),
    "other tokenizer": changed(finish_reason="stop"),
    "not a token": changed(token_ids=[1, 2, 2**40]),
    "log-probabilities of others": changed(logprobs={"content": [{"token_id": 3, "logprob": -1.0}] * 3}),
    "no log-probabilities": changed(logprobs=None),
    "no number": no_number,
    "twice the first": changed(index=0),
    "too few": too_few,
}


@pytest.mark.parametrize("name", LOST | KEPT)
def test_every_prompt_comes_back_once(stand_ins, prompts, caplog, name):
    """Of two servers one misbehaves: what it did not finish is asked for again, what it did counts. It is lost where it is gone
    or has other weights; one answer that cannot be used is a matter of that request.
    """
    bad, well = StandIn((LOST | KEPT)[name], proper), StandIn(slow)
    sampler = stand_ins(bad, well, timeout_s=1.0 if name == "hangs" else 10.0)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (f"sampling server {bad.url} is lost" in caplog.text) == (name in LOST)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


def test_the_only_server_gets_them_again(stand_ins, prompts):
    """It still has the weights, and is not given them again."""
    bad = StandIn(reset, proper)
    sampler = stand_ins(bad)
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.resent_prompts) == (1, 0)
    assert len(bad.read) == 1


def test_a_server_is_lost_that_decodes_nothing(stand_ins, prompts, caplog):
    """It answers, and its label is right: someone has paused it. One that is slow is kept."""

    def paused(handler, request):
        until(lambda: "decoded nothing" in caplog.text, 30)

    def slower(handler, request):
        for _ in range(8):  # 2.4 s, with 1 s of patience
            time.sleep(0.3)
            handler.server.tokens += 1
        return answer(handler, request)

    sampler = stand_ins(StandIn(paused, proper), StandIn(slower), timeout_s=1.0)
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


def test_a_server_with_two_engines_gets_twice_as_much(stand_ins, prompts, monkeypatch):
    server = StandIn(slow, engines=2)
    sampler = stand_ins(server)
    monkeypatch.setattr(vllm_server, "AHEAD", 1)
    sampler.max_sequences = 2
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert server.most_at_once == 2


def test_what_a_lost_server_had_is_sampled_at_the_same_time_as_the_rest(stand_ins, prompts):
    """With 4 prompts the one that is left has 2 at a time, and then all."""

    def together(handler, request):
        until(lambda: well.most_at_once == 4, 30)
        return proper(handler, request)

    bad, well = StandIn(reset), StandIn(together)
    sampler = stand_ins(bad, well)
    bad.fails = {"/resume": 500}  # it does not come back
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert sampler.active_servers == 1


def test_a_request_that_is_given_back_while_all_others_wait(stand_ins, prompts):
    """The only server has all 4 when the other comes back, and their share is 2: what the fourth worker gives back is taken by
    another one, at once.
    """

    def as_far_as_it_is_back(handler, request):
        return reset(handler, request) if gone.fails else proper(handler, request)

    def fails_at_last(handler, request):
        until(lambda: len(well.asked) >= 4, 30)
        if request is not well.asked[3]:
            return proper(handler, request)
        gone.fails = {}
        until(lambda: sampler.live_servers == 2 and sampler.servers[1].busy == 1, 30)
        return too_few(handler, request)

    gone, well = StandIn(as_far_as_it_is_back), StandIn(fails_at_last)
    sampler = stand_ins(gone, well, timeout_s=4.0, give_up_s=4.0)
    gone.fails = {"/resume": 500}
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)


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


def test_a_server_that_takes_connections_and_says_nothing(policy, tokenizer, caplog, monkeypatch):
    """The time that is named is the one that was waited."""
    monkeypatch.setattr(server_link, "PROBE_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sampler = VLLMServerSampler(policy, tokenizer, servers=[url], max_sequences=4)
        sampler.load_weights(policy.state_dict(), 1)
        sampler.close()
    assert f"{url} cannot be used (no answer for 0.3 s)" in caplog.text


@pytest.mark.parametrize(
    ("act", "status", "why"),
    [
        (too_few, None, "it sent 1 completions of a prompt instead of 2"),
        (None, 500, "no"),
        (None, 400, "no"),
    ],
    ids=["too few", "error", "wrong request"],
)
def test_a_request_that_always_fails_ends_the_run(stand_ins, prompts, act, status, why):
    """The fourth of four. Those that came before are asked once, and it is asked three times."""

    def fourth_fails(handler, request):
        if request["token_ids"] != list(prompts[3].ids):
            return proper(handler, request)
        asked.append(request)
        return handler.reply({"error": {"message": "no"}}, status) if status else act(handler, request)

    asked = []
    sampler = stand_ins(StandIn(fourth_fails))
    with pytest.raises(UserError, match=rf"was not answered as it should 3 times, last: {why}\. See what"):
        sampler.sample(prompts, 2, Sampling(3), KEY)
    assert len(asked) == 3


def later_reset(handler, request):
    time.sleep(1)
    reset(handler, request)


def some_tokens_and_reset(handler, request):
    for _ in range(3):
        time.sleep(0.3)
        handler.server.tokens += 1
    reset(handler, request)


@pytest.mark.parametrize("act", [later_reset, some_tokens_and_reset])
def test_a_server_that_never_finishes_anything(stand_ins, prompts, act):
    """It says how it is, and takes requests, again and again: that ends too."""
    sampler = stand_ins(StandIn(act), timeout_s=2.0, give_up_s=1.0)
    start = time.monotonic()
    with pytest.raises(UserError, match="no server was available for 1 s"):
        sampler.sample(prompts, 2, Sampling(3), KEY)
    assert time.monotonic() - start < 60


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
@pytest.mark.parametrize("when", ["in a call", "between calls"])
def test_servers_that_do_not_fit(stand_ins, prompts, facts, wrong, when):
    """At the start it ends the run; one that comes back so is left out, and the others go on."""

    def start_again():
        bad.facts.update(facts)
        bad.label, bad.fails = "default", {"/inference/v1/generate": 400}  # it was not asked for so much

    with pytest.raises(UserError, match=wrong):
        stand_ins(StandIn(**facts))
    bad, well = StandIn(), StandIn(slow)
    sampler = stand_ins(bad, well)
    if when == "in a call":
        bad.script = [lambda handler, request: start_again()]
    else:
        start_again()
    for _ in range(2):
        assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert (sampler.active_servers, sampler.live_servers) == (1, 1)
    until(lambda: wrong.split(":")[0] in sampler.servers[0].said, 30)


def test_other_settings_that_do_not_fit(stand_ins):
    stand_ins(StandIn(max_model_len=100), max_model_len=100)
    with pytest.raises(UserError, match="has no GPU, which transfer=nccl needs"):
        stand_ins(StandIn(), transfer="nccl")
    server = StandIn()
    with pytest.raises(UserError, match="is the same server as"):
        stand_ins(server, urls=[server.url, server.url.replace("127.0.0.1", "localhost")])


def test_another_program_at_the_address(stand_ins, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(b"<html>"))
    with pytest.raises(UserError, match="is not a sampling server of dash_exp"):
        stand_ins(StandIn())


@pytest.mark.parametrize("body", [b"<html>", b"\xc3(", b"[]", b"{}"])
def test_an_answer_that_cannot_be_read(stand_ins, policy, body):
    """The server is lost until it can be read again."""
    server = StandIn()
    sampler = stand_ins(server)
    server.answers["/weight_info"] = body
    sampler.load_weights(policy.state_dict(), 2)
    assert sampler.live_servers == 0
    assert "/weight_info: its answer cannot be read" in sampler.servers[0].said
    server.answers.clear()
    until(lambda: sampler.live_servers == 1, 30)


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


def test_a_server_that_was_started_again_elsewhere_is_found_there(stand_ins, prompts, caplog):
    """The other one goes on. At its old address there is another program, or nobody."""
    first, moved, well = StandIn(reset), StandIn(proper), StandIn(slow)
    at = [first.url, well.url]
    sampler = stand_ins(first, moved, well, urls=lambda: list(at))
    first.shutdown()
    first.server_close()
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert sampler.live_servers == 1
    at[0] = moved.url
    until(lambda: sampler.live_servers == 2, 30)
    assert f"sampling server {moved.url} is back" in caplog.text
    assert good(sampler.sample(prompts, 2, Sampling(3), KEY), prompts)
    assert moved.asked


def test_another_program_at_the_address_of_a_server_that_may_move_does_not_end_a_run_that_starts(stand_ins, prompts):
    """A port may be taken before a server listens there. It gets another one."""
    other, well, moved = StandIn(proper, fingerprint="of another"), StandIn(proper), StandIn(proper)
    at = [other.url, well.url]
    sampler = stand_ins(other, well, moved, urls=lambda: list(at))
    assert sampler.live_servers == 1
    at[0] = moved.url
    until(lambda: sampler.live_servers == 2, 30)
    assert other.asked == []


def test_what_is_said_where_no_server_is_left_ends_the_run(stand_ins, prompts):
    """Without waiting for `give_up_s`."""
    only = StandIn(reset)
    left = [only.url]

    def now():
        if not left:
            raise UserError("rollout.sampler.server_nodes=1", "no sampling server is left", "Look")
        return left

    sampler = stand_ins(only, urls=now, give_up_s=1000)
    left.clear()
    with pytest.raises(UserError, match="no sampling server is left"):
        sampler.sample(prompts, 2, Sampling(3), KEY)
