from dataclasses import replace

import pytest
from conftest import composed
from omegaconf import OmegaConf
from plans import HERE

from dash_exp.planning.job import Lengths, OuterStep, job_of, largest_pass, moment_bytes, prompt_tokens
from dash_exp.planning.load import BackwardPass
from dash_exp.planning.machine import KNOWN
from dash_exp.planning.samplers import sampler_sizes

ASKS = "prompt.text='Q: {prompt}'"


def test_coupled_sampling_makes_as_many_calls_on_several_devices():
    """64 prompts, 16 at a time: 4 calls; 4 devices have 4 prompts of each."""
    coupled = ["batch.prompts=64", "batch.sample_prompts=16", "trainer=ddp", "trainer.devices=4"]
    job = job_of(composed(*coupled), HERE)
    assert (job.step.calls, job.step.prompts_per_call, job.step.prompts) == (4, 4, 16)


@pytest.mark.parametrize(
    ("sampler", "on_gpus", "on_cpus"),
    [
        (["rollout.sampler.servers=[http://a:1,http://b:1,http://c:1]"], (3, 1), (3, 1)),
        (["rollout.sampler.server_nodes=2"], (16, 1), (2, 1)),  # 8 GPUs each, as nodes that train have; one server without
        (["rollout.sampler.server_nodes=2", "rollout.sampler.gpus_per_server=4"], (4, 4), (2, 1)),
    ],
)
def test_how_many_servers_sample(sampler, on_gpus, on_cpus):
    words = ["rollout=vllm_server", *sampler, "trainer=ddp", "trainer.devices=8"]
    for cfg, device, found in (
        (composed(*words, "trainer.accelerator=gpu"), KNOWN["h200"], on_gpus),
        (composed(*words), HERE, on_cpus),
    ):
        sizes = sampler_sizes(cfg, device)
        assert (sizes.servers, sizes.gpus_each) == found


def test_the_largest_backward_pass_by_hand():
    """Sequences of 10 + 30 tokens, groups of 4, two prompts in a sampling call, 100 tokens in a pass."""
    step = OuterStep(prompts=2, group=4, calls=1, prompts_per_call=2, epochs=1, optimizer_steps=1, micro_tokens=100)
    lengths = Lengths(prompt=10, completion=30, longest=30)
    # 100 // 40
    assert largest_pass(step, lengths, packed=False) == BackwardPass(2, 30, 60, 1, 10, several=True)
    # 200 // 40 rows of attention, of two prompts, which leave 80 tokens to the completions
    assert largest_pass(step, lengths, packed=True) == BackwardPass(5, 30, 80, 2, 10, several=True)
    # all 8 in one
    one = replace(step, micro_tokens=200)
    assert largest_pass(one, lengths, packed=True) == BackwardPass(8, 30, 180, 2, 10, several=False)


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        ([], 12),  # 6 numbers and 6 signs
        (["prompt.system=Add", ASKS, "prompt.prefill=So"], 12 + 3 + 3 + 2),
        (["prompt.few_shot=2", ASKS], 12 + 3 + 2 * (3 + 12 + 12)),  # an example has a solution
        (["data.max_prompt_tokens=50", "prompt.few_shot=2"], 50),  # longer ones are left out
        (["data=gsm8k", "prompt.text='A question: {prompt}'"], 256 + 3),  # 12 characters
        (["data=gsm8k", "prompt=chat"], 256 + 40),
        (["data=gsm8k", "model=smollm2-135m"], 256 + 40),  # an instruct model is asked in its template
        (["data=gsm8k", "model=smollm2-135m", "prompt=bare"], 256),
        (["data=gsm8k", "prompt=chat", "prompt.few_shot=2"], 256 + 2 * 512 + 40 + 2 * 12),
    ],
)
def test_prompts_with_what_stands_around_the_problem(overrides, tokens):
    cfg = composed(*overrides)
    assert prompt_tokens(cfg.data.train, cfg) == tokens


@pytest.mark.parametrize(
    ("n", "devices", "expected"),
    [
        # test sets of 40 and 3 problems, 24 completions at a time
        (0, 1, [(24, 24), (3, 3)]),
        (8, 1, [(24, 24), (3, 24), (3, 3), (3, 24)]),  # and 24 // 8 problems with 8 each
        (8, 2, [(12, 12), (2, 16), (2, 2), (2, 16)]),  # which two devices share
    ],
)
def test_evaluation_decodes_greedy_completions_and_n_more(n, devices, expected):
    sizes = ["eval.prompts=24", f"eval.n={n}", "data.tests.in_dist.size=40", "data.tests.out_dist.size=3"]
    several = ["trainer=ddp", f"trainer.devices={devices}"] if devices > 1 else []
    batches = job_of(composed(*sizes, *several), HERE).load.decode
    found = [(batch.prompts, batch.completions) for batch in batches if batch.phase == "evaluate"]
    assert found == list(dict.fromkeys(expected)) or found == expected


def test_evaluation_decodes_to_the_limit_of_its_test_set():
    batches = job_of(composed("+data.tests.out_dist.max_response_tokens=99"), HERE).load.decode
    assert [batch.tokens for batch in batches] == [64, 64, 99]  # in training, and of the two test sets


@pytest.mark.parametrize(
    ("optimizer", "itemsize", "size"),
    [
        ("torch.optim.AdamW", 4, 8),
        ("torch.optim.AdamW amsgrad", 4, 12),
        ("torch.optim.AdamW", 2, 4),
        ("torch.optim.SGD", 4, 0),
        ("torch.optim.SGD momentum", 4, 4),
        ("bitsandbytes.optim.AdamW8bit", 4, 2),
    ],
)
def test_bytes_of_the_moments(optimizer, itemsize, size):
    target, *switched_on = optimizer.split()
    settings = OmegaConf.create({"_target_": target} | dict.fromkeys(switched_on, True))
    assert moment_bytes(settings, itemsize) == size
