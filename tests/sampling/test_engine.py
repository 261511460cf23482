"""When an engine sleeps and wakes, and with which weights. It is a recording: only a GPU has memory to give back."""

import pytest
import torch
from conftest import NANO
from recorded_vllm import VLLM
from tiny_models import SMALL

from dash_exp.models.loading import load_policy
from dash_exp.sampling import engine
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.refresh import Refresh
from dash_exp.sampling.vllm import VLLMSampler

KEY = (0, 3)
GEMMA = SMALL | {"model_type": "gemma3_text", "vocab_size": 258, "head_dim": 8, "eos_token_id": 1}


@pytest.fixture
def made(monkeypatch, tokenizer):
    """A policy with a sampler that can sleep, and what its engine is asked from then on."""
    monkeypatch.setattr(engine, "import_vllm", lambda: VLLM)
    monkeypatch.setattr(engine.Engine, "warm_up", lambda self: None)

    def make(architecture, lora=None, **settings):
        torch.manual_seed(0)
        policy = load_policy("", architecture=architecture, lora=lora)
        sampler = VLLMSampler(policy, tokenizer, max_sequences=8, max_model_len=64, **settings)
        sampler.engine.can_sleep = True
        sampler.engine.llm.asked.clear()
        return policy, sampler, sampler.engine.llm

    return make


def change(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1.0


@pytest.mark.parametrize(
    ("shape", "settings", "level", "brought"),
    [
        (NANO, {}, 2, "load"),  # all of them are replaced: those of before are not kept
        (NANO, {"lora": {"r": 4, "alpha": 8}}, 1, "adapter"),  # the base was loaded once
        (NANO, {"lora": {"r": 4, "alpha": 8}, "merge": True}, 2, "load"),
        (GEMMA, {}, 1, "load"),  # not one of those whose every tensor is known
    ],
)
def test_an_engine_sleeps_without_the_weights_that_are_replaced(made, prompts, shape, settings, level, brought):
    policy, sampler, llm = made(shape, **settings)
    refresh = Refresh(policy, sampler)
    for step in range(3):
        refresh.bring(step)
        for _ in range(2):
            assert len(sampler.sample(prompts, 2, Sampling(4), KEY)) == 8
        sampler.rest()
        sampler.rest()
        assert sampler.version is None
        if step == 0:  # after the second step nothing has changed, which must not matter
            change(policy)
        refresh.publish(min(step, 1))
    asleep = [f"sleep {level}", "wake weights", brought, "wake kv_cache", "sample", "sample"]
    assert llm.asked == [brought, "sample", "sample", *asleep, *asleep, f"sleep {level}"]
    assert (llm.weights is None) == (level == 2)


@pytest.mark.parametrize("every", [None, 2])
def test_where_older_weights_sample_they_come_from_the_copy_of_the_run(made, prompts, every):
    policy, sampler, llm = made(NANO)
    first = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    refresh = Refresh(policy, sampler, every=every)
    refresh.bring(0)
    sampler.rest()
    change(policy)
    refresh.publish(1)
    refresh.bring_newest()  # an evaluation
    assert all(torch.equal(llm.weights[name], tensor) for name, tensor in policy.state_dict().items())
    refresh.bring(1)
    sampler.sample(prompts, 1, Sampling(4), KEY)
    assert sampler.version == 0
    assert all(torch.equal(llm.weights[name], tensor) for name, tensor in first.items())


def test_nothing_is_sampled_while_it_sleeps(made, prompts):
    policy, sampler, _ = made(NANO)
    sampler.load_weights(policy.state_dict(), 0)
    sampler.rest()
    with pytest.raises(AssertionError, match="no weights yet"):
        sampler.sample(prompts, 1, Sampling(4), KEY)
    with pytest.raises(AssertionError, match="sleeps"):
        sampler.engine.generate(prompts, 1, Sampling(4), KEY)


def test_an_engine_that_cannot_sleep_keeps_its_weights(made, prompts):
    policy, sampler, llm = made(NANO)
    sampler.engine.can_sleep = False
    sampler.load_weights(policy.state_dict(), 0)
    sampler.rest()
    sampler.sample(prompts, 1, Sampling(4), KEY)
    assert (sampler.version, llm.asked) == (0, ["load", "sample"])
