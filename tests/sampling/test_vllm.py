"""The real engine: it must differ from `rollout=hf` in nothing but the engine."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from completions import ids_of as ids
from completions import plain
from conftest import SMALL, TRAIN, needs_vllm, program
from scipy.stats import chisquare

from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.data import arithmetic
from dash_exp.models import loading
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import token_logprobs
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.stopping import StopStrings
from dash_exp.sampling.vllm import VLLMSampler

pytestmark = needs_vllm
KEY = (0, 3)


@pytest.fixture(scope="module")
def tiny():
    return loading.load_policy(str(loading.ASSETS / "tiny"))


@pytest.fixture(scope="module")
def engine(tiny, tokenizer):
    sampler = VLLMSampler(tiny, tokenizer, max_sequences=64, max_model_len=256)
    yield sampler
    sampler.close()


@pytest.fixture
def vllm(engine, tiny):
    """The engine with the weights of the shipped policy, whatever the test before it has loaded."""
    engine.load_weights(tiny.state_dict(), 0)
    return engine


def arithmetic_prompts(tokenizer, n):
    return [Prompt(p, tuple(tokenizer(p.prompt).input_ids)) for p in arithmetic.generate("train", "symbols", n)]


def largest_difference(policy, prompts, completions, temperature=1.0):
    """Between the engine's log-probabilities and those of training, in nats."""
    group = len(completions) // len(prompts)
    samples = [Sample(prompts[i // group].ids, c.ids, 0.0, c.logprobs) for i, c in enumerate(completions)]
    batch = collate(samples, 0)
    with torch.no_grad():
        logprobs_BT = token_logprobs(policy, batch, temperature)
    return float(((logprobs_BT - batch.old_logprobs_BT) * batch.completion_mask_BT).abs().max())


def test_greedy_decoding_gives_the_same_text_as_transformers_on_200_problems(vllm, tiny, tokenizer):
    prompts = arithmetic_prompts(tokenizer, 200)
    sampling = Sampling(64, temperature=0.0)
    expected = HFSampler(tiny, tokenizer, 256).sample(prompts, 1, sampling, ())
    got = vllm.sample(prompts, 1, sampling, ())
    assert ids(got) == ids(expected)
    assert [c.truncated for c in got] == [c.truncated for c in expected]
    assert len(set(ids(got))) > 100  # not all the same text


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_training(vllm, tiny, tokenizer, temperature):
    prompts = arithmetic_prompts(tokenizer, 20)
    completions = vllm.sample(prompts, 4, Sampling(64, temperature), KEY)
    assert largest_difference(tiny, prompts, completions, temperature) < 1e-4


def test_greedy_logprobs_are_those_of_temperature_one(vllm, tiny, tokenizer):
    prompts = arithmetic_prompts(tokenizer, 20)
    assert largest_difference(tiny, prompts, vllm.sample(prompts, 1, Sampling(64, 0.0), ())) < 1e-4


def test_noise_is_keyed_and_cutting_changes_nothing(vllm, tokenizer):
    prompts = arithmetic_prompts(tokenizer, 12)
    together = ids(vllm.sample(prompts, 8, Sampling(64), KEY))  # 96 completions: more than the engine takes at a time
    assert ids(vllm.sample(prompts, 8, Sampling(64), KEY)) == together
    assert [i for p in prompts for i in ids(vllm.sample([p], 8, Sampling(64), KEY))] == together
    assert ids(vllm.sample(prompts, 8, Sampling(64), (0, 4))) != together
    assert ids(vllm.sample(prompts, 8, Sampling(64), (1, 3))) != together
    assert any(len(set(together[i : i + 8])) > 2 for i in range(0, 96, 8))  # the members of a group differ


def test_a_group_in_two_parts_is_the_group(vllm, tokenizer):
    prompts = arithmetic_prompts(tokenizer, 6)
    together = ids(vllm.sample(prompts, 4, Sampling(64), KEY))
    for first in (1, 2, 3):  # a group of one is another kind of request
        begun = ids(vllm.sample(prompts, first, Sampling(64), KEY))
        rest = ids(vllm.sample(prompts, 4 - first, Sampling(64, start=first), KEY))
        for i in range(6):
            group = [*begun[i * first : (i + 1) * first], *rest[i * (4 - first) : (i + 1) * (4 - first)]]
            assert [list(c) for c in group] == [list(c) for c in together[4 * i : 4 * i + 4]]


def test_sampled_frequencies_are_the_probabilities(vllm, tiny, tokenizer):
    """First tokens of 4,000 completions of one prompt, hot so that many tokens come up; rare ones are counted together."""
    (prompt,), n = arithmetic_prompts(tokenizer, 1), 4000
    completions = vllm.sample([prompt], n, Sampling(1, temperature=2.0), KEY)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in completions]), minlength=258)
    p = torch.softmax(tiny(torch.tensor([prompt.ids])).logits[0, -1].double() / 2, -1).detach()
    often = n * p >= 5
    assert often.sum() > 10
    observed = [*counts[often].tolist(), int(counts[~often].sum())]
    assert chisquare(observed, [*(n * p[often]).tolist(), float(n * p[~often].sum())]).pvalue > 1e-4
    assert all(c.truncated or c.ids.tolist() == [tokenizer.eos_token_id] for c in completions)


def test_completions_end_with_eos_or_are_truncated(vllm, tokenizer):
    completions = vllm.sample(arithmetic_prompts(tokenizer, 20), 4, Sampling(12), KEY)
    for c in completions:
        assert tokenizer.eos_token_id not in c.ids[:-1]
        assert c.truncated == (c.ids[-1] != tokenizer.eos_token_id)
        assert len(c.ids) == 12 or not c.truncated
        assert len(c.logprobs) == len(c.ids)
    assert 0 < sum(c.truncated for c in completions) < len(completions)


STOP = ("7=", "14", "\n")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_strings_end_the_same_completions_as_with_transformers(vllm, tiny, tokenizer, temperature):
    """Greedy the texts are the same; sampled, by other noise, they end where a text of Transformers' sampler would."""
    prompts, group = arithmetic_prompts(tokenizer, 60), 1 if temperature == 0 else 4
    sampling = Sampling(40, temperature, stop=STOP)
    got = vllm.sample(prompts, group, sampling, KEY)
    if temperature == 0:
        expected = expected_of(tiny, tokenizer, prompts, sampling)
        assert plain(got) == plain([replace(c, logprobs=mine.logprobs) for c, mine in zip(expected, got, strict=True)])
    free = vllm.sample(prompts, group, replace(sampling, stop=()), KEY)
    stops = StopStrings(tokenizer, STOP)
    for one, whole in zip(got, free, strict=True):
        n = len(one.ids)
        found = [k for k in range(1, len(whole.ids) + 1) if stops.completed(torch.tensor(whole.ids[None, :k]))[0]]
        assert np.array_equal(one.ids, whole.ids[: min([len(whole.ids), *found])])
        assert len(one.logprobs) == n
        assert one.stopped == (n in found)
        assert one.truncated == (not one.stopped and one.ids[-1] != tokenizer.eos_token_id)
    assert 0 < sum(one.stopped for one in got) < len(got)


def expected_of(tiny, tokenizer, prompts, sampling):
    return HFSampler(tiny, tokenizer, 256).sample(prompts, 1, sampling, KEY)


def test_the_nucleus(vllm, tokenizer):
    prompts = arithmetic_prompts(tokenizer, 10)
    greedy = ids(vllm.sample(prompts, 1, Sampling(64, 0.0), ()))
    narrow = vllm.sample(prompts, 1, Sampling(64, 1.0, top_p=1e-6), KEY)
    assert ids(narrow) == greedy
    assert all(c.logprobs is None for c in narrow)


def test_new_weights_are_taken_over_with_cached_prompts_forgotten(vllm, tiny, tokenizer):
    """Long prompts, so that the engine keeps them; other weights; then its log-probabilities must be those of the others."""
    prompts = [Prompt(Problem(str(i), "", ""), tuple(tokenizer("1+2*3-4" * 12 + f"{i}=").input_ids)) for i in range(4)]
    before = vllm.sample(prompts, 4, Sampling(20), KEY)
    assert largest_difference(tiny, prompts, before) < 1e-4
    other = loading.frozen_copy(tiny)
    torch.manual_seed(0)
    for parameter in other.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    vllm.load_weights(other.state_dict(), 1)
    after = vllm.sample(prompts, 4, Sampling(20), KEY)
    assert vllm.version == 1
    assert largest_difference(other, prompts, after) < 1e-4
    assert largest_difference(tiny, prompts, after) > 1e-2  # the test can tell one from the other


def test_weights_that_are_not_all_there_are_refused(vllm, tiny):
    weights = tiny.state_dict()
    lacking = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"1 missing \['lm_head.weight'\]"):
        vllm.load_weights(lacking, 7)
    assert vllm.version is None  # nothing can be sampled with what it has now
    with pytest.raises(AssertionError, match="no weights"):
        vllm.sample([], 1, Sampling(1), KEY)
    with pytest.raises(ValueError, match="1 of another shape"):
        vllm.load_weights(weights | {"model.norm.weight": torch.ones(3)}, 7)


def test_the_random_state_is_left_alone(tiny, tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    VLLMSampler(tiny, tokenizer, max_sequences=8, max_model_len=64).close()
    assert torch.rand(1) == expected


# --- whole runs ---------------------------------------------------------------------------------------------------------


def record(folder, name):
    (run,) = (folder / "outputs" / name).iterdir()
    rows = [json.loads(line) for line in (run / "completions" / "step_00002.jsonl").read_text().splitlines()]
    return read_metrics(run / "metrics.csv"), rows, json.loads((run / "result.json").read_text())


def test_a_run_differs_from_that_of_hf_in_nothing_but_the_engine(train, tmp_path):
    """The one with vLLM in a process of its own, as a user starts it: what vLLM needs is set before it is imported."""
    for rollout, start in (("hf", train), ("vllm", partial(program, tmp_path, TRAIN, is_forked=False))):
        done = start(*SMALL, f"rollout={rollout}", f"name={rollout}")
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stdout
    hf, vllm = record(tmp_path, "hf"), record(tmp_path, "vllm")
    assert [set(row) for row in vllm[0]] == [set(row) for row in hf[0]]
    filled = [{k for k, v in row.items() if v is not None} for row in hf[0]]
    assert [{k for k, v in row.items() if v is not None} for row in vllm[0]] == filled
    assert [row["prompt"] for row in vllm[1]] == [row["prompt"] for row in hf[1]]
    assert [set(row) for row in vllm[1]] == [set(row) for row in hf[1]]
    assert vllm[2]["accuracy/in_dist/base"] == hf[2]["accuracy/in_dist/base"]  # greedy, by the same weights
    assert all(row["mismatch/max_nats"] < 1e-3 for row in vllm[0][1:])
    assert vllm[2]["time/sync_s"] > 0


def test_without_refresh_a_run_warns_by_the_second_step(train):
    done = train(*SMALL, "rollout=vllm", "rollout.refresh_every=null")
    assert done.returncode == 0, done.stderr
    assert "WARNING] - outer step 2: the completions were sampled with weights that are 1 outer step(s) old" in done.stdout


def test_an_engine_that_only_says_that_it_was_refreshed_is_found_out_by_the_second_step(train, tmp_path):
    (tmp_path / "deaf.py").write_text(
        "from dash_exp.sampling.vllm import VLLMSampler\n"
        "class Deaf(VLLMSampler):\n"
        "    def load_weights(self, weights, version):\n"
        "        if self.version is None: super().load_weights(weights, version)\n"
        "        self.version = version\n"
    )
    done = train(*SMALL, "rollout=vllm", "rollout.sampler._target_=deaf.Deaf", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "WARNING] - outer step 2: the sampler reports the policy's weights" in done.stdout


def test_a_stale_run_overlaps_and_says_so(train, tmp_path):
    done = train(*SMALL, "steps=3", "rollout=vllm", "rollout.staleness=1", "name=stale")
    assert done.returncode == 0, done.stderr
    assert "weights at most 1 outer step(s) stale, importance ratio capped at 2" in done.stdout
    rows = record(tmp_path, "stale")[0][1:]
    assert [row["policy/lag"] for row in rows] == [0, 1, 1]
    assert rows[0]["mismatch/max_nats"] < 1e-3 < rows[1]["mismatch/max_nats"]


@pytest.mark.gpu
def test_asleep_the_engine_gives_its_memory_back(tokenizer):
    tiny = loading.load_policy(str(loading.ASSETS / "tiny")).cuda()
    sampler = VLLMSampler(tiny, tokenizer, max_sequences=64, max_model_len=256, memory_share=0.2, sleep=True)
    sampler.load_weights(tiny.state_dict(), 0)
    prompts = arithmetic_prompts(tokenizer, 20)
    before = ids(sampler.sample(prompts, 4, Sampling(32), KEY))
    free = torch.cuda.mem_get_info()[0]
    for version in (1, 2):
        sampler.rest()
        assert torch.cuda.mem_get_info()[0] > free + 2**30
        assert sampler.version is None  # its weights are gone
        sampler.load_weights(tiny.state_dict(), version)
        woken = sampler.sample(prompts, 4, Sampling(32), KEY)
        assert ids(woken) == before
        assert largest_difference(tiny.cpu(), prompts, woken) < 1e-2  # on another device
        tiny.cuda()
    sampler.close()
