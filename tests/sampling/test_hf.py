import pytest
import torch
from completions import ids_of
from tiny_models import SMALL
from torch.overrides import TorchFunctionMode

from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.models.batch import collate
from dash_exp.models.loading import load_policy
from dash_exp.models.log_probs import token_logprobs
from dash_exp.sampling import hf
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler, choose
from dash_exp.sampling.traces import TraceSampler

KEY = (0, 3)


def sampler(policy, tokenizer, max_sequences=64):
    return HFSampler(policy, tokenizer, max_sequences=max_sequences)


def test_choose_inverts_the_distribution_function():
    # cumulative probabilities 0.5, 0.75, 1: noise below 0.5 -> 0, below 0.75 -> 1, else 2
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(4, 3)
    tokens, logprobs = choose(logits, 1.0, torch.tensor([0.0, 0.49, 0.6, 0.999]))
    assert tokens.tolist() == [0, 0, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25]))


def test_choose_at_another_temperature():
    # at temperature 1/2 probabilities are squared: 1/4, 1/16, 1/16 -> 2/3, 1/6, 1/6
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    tokens, logprobs = choose(logits, 0.5, torch.tensor([0.7]))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([1 / 6]))


def test_choose_never_takes_what_has_no_probability():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).expand(3, 3)
    assert choose(logits, 1.0, torch.tensor([0.0, 0.5, 0.99999994]))[0].tolist() == [1, 1, 1]


def test_choose_from_the_nucleus():
    # probabilities 0.2, 0.5, 0.3; top-p 0.6 needs 0.5 and 0.3, together 0.8: noise below 0.625 -> 1, else 2
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(4, 3)
    tokens, logprobs = choose(logits, 1.0, torch.tensor([0.0, 0.6, 0.65, 0.99999994]), top_p=0.6)
    assert tokens.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.3, 0.3]))  # of the whole distribution


def test_the_nucleus_is_that_of_the_temperature():
    # at temperature 1/2 0.2, 0.5, 0.3 become 4/38, 25/38, 9/38: top-p 0.6 leaves 25/38 alone
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(2, 3)
    assert choose(logits, 0.5, torch.tensor([0.0, 0.999]), top_p=0.6)[0].tolist() == [1, 1]


def test_a_small_nucleus_is_greedy_and_a_whole_one_changes_nothing(policy, tokenizer, prompts):
    def ids(temperature, top_p):
        return ids_of(sampler(policy, tokenizer).sample(prompts, 2, Sampling(10, temperature, top_p), KEY))

    assert ids(1.0, 1e-6) == ids(0.0, 1.0)
    assert ids(0.0, 0.5) == ids(0.0, 1.0)
    assert ids(1.0, 1 - 1e-9) == ids(1.0, 1.0)
    assert ids(1.0, 0.5) != ids(1.0, 1.0)


def test_sampled_frequencies_are_the_probabilities(policy, tokenizer, prompts):
    """First tokens of 4,000 completions of one prompt: each frequency within 5 standard errors of its probability."""
    n = 4000
    completions = sampler(policy, tokenizer, 500).sample(prompts[:1], n, Sampling(max_tokens=1), KEY)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in completions]), minlength=258) / n
    p = torch.softmax(policy(torch.tensor([prompts[0].ids])).logits[0, -1], -1)
    assert ((counts - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_logprobs_are_those_of_training(policy, tokenizer, prompts):
    completions = sampler(policy, tokenizer).sample(prompts, 3, Sampling(20, temperature=0.8), KEY)
    samples = [Sample(prompts[i // 3].ids, c.ids, 0.0) for i, c in enumerate(completions)]
    expected = token_logprobs(policy, collate(samples, 0), temperature=0.8)
    for row, completion in enumerate(completions):
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected[row, : len(completion.ids)].detach())


def test_cutting_into_batches_changes_nothing(policy, tokenizer, prompts):
    """One at a time, five at a time, all together, and prompts in separate calls: the same completions in the same order."""
    sampling = Sampling(15)
    together = ids_of(sampler(policy, tokenizer).sample(prompts, 4, sampling, KEY))
    for size in (1, 5):
        assert ids_of(sampler(policy, tokenizer, size).sample(prompts, 4, sampling, KEY)) == together
    alone = [ids for p in prompts for ids in ids_of(sampler(policy, tokenizer).sample([p], 4, sampling, KEY))]
    assert alone == together


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_group_in_two_parts_is_the_group(policy, tokenizer, prompts, first):
    whole, parts = (sampler(policy, tokenizer) for _ in range(2))
    together = [c.ids for c in whole.sample(prompts, 4, Sampling(15), KEY)]
    begun = [c.ids for c in parts.sample(prompts, first, Sampling(15), KEY)]
    rest = [c.ids for c in parts.sample(prompts, 4 - first, Sampling(15, start=first), KEY)]
    for i in range(len(prompts)):
        group = [*begun[i * first : (i + 1) * first], *rest[i * (4 - first) : (i + 1) * (4 - first)]]
        assert [list(ids) for ids in group] == [list(ids) for ids in together[4 * i : 4 * i + 4]]


def test_no_more_than_max_sequences_at_a_time(policy, tokenizer, prompts):
    rows = []
    policy.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    sampler(policy, tokenizer, 3).sample(prompts, 4, Sampling(5), KEY)
    assert max(rows) == 3


def test_noise_is_keyed(policy, tokenizer, prompts):
    def ids(key):
        return ids_of(sampler(policy, tokenizer).sample(prompts, 2, Sampling(10), key))

    assert ids((0, 3)) == ids((0, 3))
    assert ids((0, 3)) != ids((0, 4))
    assert ids((0, 3)) != ids((1, 3))
    assert len(set(ids((0, 3)))) == 8  # the members of a group differ too


def test_completions_end_with_eos_or_are_truncated(policy, tokenizer, prompts):
    completions = sampler(policy, tokenizer).sample(prompts, 50, Sampling(20), KEY)
    for completion in completions:
        assert tokenizer.eos_token_id not in completion.ids[:-1]
        assert completion.truncated == (completion.ids[-1] != tokenizer.eos_token_id)
        assert len(completion.ids) == 20 or not completion.truncated
        assert len(completion.logprobs) == len(completion.ids)
    assert 0 < sum(c.truncated for c in completions) < len(completions)  # both kinds were seen


def test_greedy_agrees_with_transformers_generate(policy, tokenizer, prompts):
    for prompt, completion in zip(prompts, sampler(policy, tokenizer).sample(prompts, 1, Sampling(12, 0.0), ()), strict=True):
        expected = policy.eval().generate(torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False)
        assert completion.ids.tolist() == expected[0, len(prompt.ids) :].tolist()


OF_FAMILY = {
    "llama": {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3},  # as SmolLM2
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("family", OF_FAMILY)
def test_greedy_agrees_with_transformers_generate_in_every_family(family, tokenizer):
    """Prompts of one to 40 tokens in one batch, shorter and longer than a sliding window, which also moves while decoding."""
    torch.manual_seed(0)
    shape = SMALL | {"vocab_size": 258, "initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 1} | OF_FAMILY[family]
    policy = load_policy("", architecture={"model_type": family, **shape})
    prompts = [Prompt(Problem(str(n), "", ""), tuple(3 + 7 * i % 250 for i in range(n))) for n in (40, 3, 12, 8, 9, 1, 25)]
    for prompt, completion in zip(prompts, sampler(policy, tokenizer).sample(prompts, 1, Sampling(20, 0.0), ()), strict=True):
        expected = policy.eval().generate(torch.tensor([prompt.ids]), max_new_tokens=20, do_sample=False)
        assert completion.ids.tolist() == expected[0, len(prompt.ids) :].tolist()


def test_training_mode_is_restored(policy, tokenizer, prompts):
    policy.train()
    sampler(policy, tokenizer).sample(prompts, 1, Sampling(3), KEY)
    assert policy.training


def test_traces_are_the_solutions(tokenizer, prompts):
    completions = TraceSampler(tokenizer).sample(prompts[:2], 2, Sampling(64), KEY)
    assert [tokenizer.decode(c.ids) for c in completions] == ["A:1<eos>"] * 4
    assert TraceSampler(tokenizer).sample(prompts[:1], 1, Sampling(2), KEY)[0].truncated


READS = {"item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class Waits(TorchFunctionMode):
    """Counts what would wait for a GPU: values that are read, and selections by a mask, whose size must be known."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = function.__name__
        index = arguments[1] if name in ("__getitem__", "__setitem__") else ()
        by_mask = any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in (index if isinstance(index, tuple) else (index,))
        )
        if name in READS or by_mask:
            self.found.append(name)
        return function(*arguments, **(keywords or {}))


def many(prompts):
    """20 problems with each of these prompts."""
    return [Prompt(Problem(f"{p.problem.id}{i}", "", ""), p.ids) for i in range(20) for p in prompts]


@pytest.mark.parametrize("look_every", [1, 8])
def test_decoding_waits_for_the_device_at_most_once_a_token(policy, tokenizer, prompts, monkeypatch, look_every):
    monkeypatch.setitem(hf.LOOK_EVERY, "cpu", look_every)
    with Waits() as waits:
        completions = sampler(policy, tokenizer, 80).sample(many(prompts), 1, Sampling(64), KEY)
    assert len({len(c.ids) for c in completions}) > 5  # many have left the batch on the way
    assert len(waits.found) <= 64 // look_every + 2 + 4  # and where prompts are read, and lists at the end


@pytest.mark.parametrize("stop", [(), ("7a", "12", "b")])
@pytest.mark.parametrize("group", [1, 4])  # with four the prompts are shared
def test_looking_less_often_changes_nothing(policy, tokenizer, prompts, monkeypatch, group, stop):
    def sampled(look_every):
        monkeypatch.setitem(hf.LOOK_EVERY, "cpu", look_every)
        found = sampler(policy, tokenizer, 100).sample(many(prompts)[: 80 // group], group, Sampling(64, stop=stop), KEY)
        return [(tuple(c.ids), c.truncated, c.stopped) for c in found], [x for c in found for x in c.logprobs]

    expected, logprobs = sampled(1)
    assert len({len(ids) for ids, *_ in expected}) > 5
    assert any(stopped for *_, stopped in expected) == bool(stop)
    for look_every in (3, 8, 100):
        got, others = sampled(look_every)
        assert got == expected
        torch.testing.assert_close(torch.tensor(others), torch.tensor(logprobs))
