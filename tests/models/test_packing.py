"""Packed micro-batches give the numbers of padded ones, in every family of models that may read them."""

import copy
import itertools

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, SMALL, WINDOW, WINDOWED, random_model, samples

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt, Sample
from dash_exp.models import log_probs, packing
from dash_exp.models.batch import collate, micro_batches
from dash_exp.models.loading import load_policy
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.cache import RoomyCache, SharedPrompts
from dash_exp.sampling.hf import HFSampler, read


def gradient(model, batches, temperature=0.7):
    model.zero_grad()
    loss = torch.tensor(0.0, device=model.device)
    for batch in batches:
        logprobs_BT = log_probs.token_logprobs(model, batch, temperature)
        loss_BT = logprobs_BT * batch.advantages_B[:, None]
        loss_BT.sum().backward()
        loss += loss_BT.detach().sum()
    return loss, [p.grad.clone() for p in model.parameters()]


def test_layout_by_hand():
    packed = packing.pack([((5, 6, 7), np.array([8, 9])), ((5, 6, 7), np.array([10])), ((11,), np.array([12, 13]))])
    assert packed.ids_N.tolist() == [5, 6, 7, 11, 8, 9, 10, 12, 13]
    assert packed.positions_N.tolist() == [0, 1, 2, 0, 3, 4, 3, 1, 2]
    assert packed.before_K.tolist() == [2, 4, 2, 3, 7]
    assert packed.prompt_B.tolist() == [0, 0, 1]
    assert packed.mask[2, 0].tolist() == [[True, False, False, True, False], [True, False, False, True, True]]


CASES = [*((family, False) for family in FAMILIES), *((family, True) for family in WINDOWED)]


@pytest.mark.parametrize(("family", "windows"), CASES)
def test_log_probs_and_gradients_equal_those_of_padded_rows(family, windows):
    model = random_model(family, windows)
    assert packing.enabled(model)
    assert packing.windowed(model) == windows
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    assert not packing.enabled(plain)
    torch.testing.assert_close(
        log_probs.token_logprobs(model, collate(samples(), 0, packed=True), 0.7),
        log_probs.token_logprobs(plain, collate(samples(), 0), 0.7),
    )
    packed = gradient(model, [batch for _, batch in micro_batches(samples(), 40, 0, packed=True)])
    alone = gradient(plain, [collate([sample], 0) for sample in samples()])
    torch.testing.assert_close(packed, alone)
    torch.testing.assert_close(gradient(plain, [collate(samples(), 0)]), alone)


def of_any_length(query, key, value, query_starts, key_starts, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's `varlen_attn` computes on a GPU, written out: the last query of a sequence is at its last key."""
    left, right = window_size
    assert (right, enable_gqa) == (0, True)
    out = []
    for (q0, q1), (k0, k1) in zip(
        itertools.pairwise(query_starts.tolist()), itertools.pairwise(key_starts.tolist()), strict=True
    ):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        q, k, v = (states.transpose(0, 1) for states in (query[q0:q1], key[k0:k1], value[k0:k1]))
        behind = torch.arange(k1 - q1 + q0, k1)[:, None] - torch.arange(k0, k1)
        sees = (behind >= 0) & (behind <= left if left >= 0 else True)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, sees, scale=scale, enable_gqa=True)
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize(("family", "windows"), CASES)
def test_attention_of_sequences_of_any_length(family, windows, monkeypatch):
    """As on GPUs, where rows have no padding."""
    monkeypatch.setattr(packing, "IN_32_BITS", set())
    model = random_model(family, windows).double()
    expected = gradient(model, [collate(samples(), 0, packed=True)])
    monkeypatch.setattr(packing, "FLASH_DTYPES", {torch.float64})
    monkeypatch.setattr(packing, "varlen_attn", of_any_length)
    monkeypatch.setattr(packing, "_packed_attention", None)
    model.set_attn_implementation(packing.VARLEN)
    assert packing.enabled(model)
    torch.testing.assert_close(gradient(model, [collate(samples(), 0, packed=True)]), expected)


def test_the_setting_for_sequences_of_any_length(monkeypatch):
    """In 32 bits and on CPUs it is sdpa. What the kernel does not take is told before anything is computed."""
    shape = {"model_type": "qwen2", **SMALL}
    names = ("sdpa", "varlen", "flash_attention_2")
    policies = [load_policy("", "float32", shape, attn_implementation=name) for name in names]
    attentions = [policy.config._attn_implementation for policy in policies]
    assert attentions == [packing.ATTENTION, packing.VARLEN, packing.VARLEN]
    policies[1].load_state_dict(policies[0].state_dict())
    batch = collate(samples(), 0, packed=True)
    torch.testing.assert_close(*(log_probs.token_logprobs(policy, batch, 1.0) for policy in policies[:2]))
    cpu = torch.device("cpu")
    packing.check_varlen(policies[1], cpu, torch.bfloat16)
    monkeypatch.setattr(packing, "IN_32_BITS", set())
    torch.testing.assert_close(*(log_probs.token_logprobs(policy, batch, 1.0) for policy in policies[:2]))
    packing.check_varlen(policies[1], cpu, torch.float32)
    packing.check_varlen(policies[0], cpu, torch.bfloat16)
    said = r"^model\.attn_implementation: its attention without padding does not work with this GPU.*\. Write sdpa"
    with pytest.raises(UserError, match=said):
        packing.check_varlen(policies[1], cpu, torch.bfloat16)
    monkeypatch.setattr(packing, "varlen_attn", of_any_length)
    packing.check_varlen(policies[1], cpu, torch.bfloat16)


@pytest.mark.gpu
def test_attention_of_sequences_of_any_length_on_a_gpu():
    shape = {"model_type": "qwen2", **SMALL, "hidden_size": 64}
    policies = [load_policy("", "float32", shape, attn_implementation=name).cuda() for name in ("sdpa", "varlen")]
    policies[1].load_state_dict(policies[0].state_dict())
    batch = collate(samples(), 0, packed=True).to(torch.device("cuda"))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        masked, varlen = (gradient(policy, [batch]) for policy in policies)
    torch.testing.assert_close(varlen, masked, rtol=0.05, atol=0.02)


def test_gradient_checkpointing_computes_the_packed_rows_again():
    model = random_model("qwen2")
    expected = gradient(model, [collate(samples(), 0, packed=True)])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradient(model.train(), [collate(samples(), 0, packed=True)]), expected)


def test_logits_in_pieces_are_the_same(monkeypatch):
    model = random_model("qwen2")
    expected = gradient(model, [collate(samples(), 0, packed=True)])
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(len(logits)))
    monkeypatch.setitem(log_probs.LOGITS, "cpu", 10 * SMALL["vocab_size"] * 4)
    torch.testing.assert_close(gradient(model, [collate(samples(), 0, packed=True)]), expected)
    tokens = sum(len(s.completion_ids) for s in samples())
    assert max(rows) == 10 and sum(rows) == 2 * tokens - 10  # all but the first piece again in the backward pass


@pytest.mark.parametrize("in_32_bits", [{"cpu"}, set()], ids=["as on CPUs", "as on GPUs"])
def test_mixed_precision(in_32_bits, monkeypatch, tokenizer):
    """Rotary embeddings leave queries and keys in 32 bits where values have 16. Both layouts and the sampler take it."""
    monkeypatch.setattr(packing, "IN_32_BITS", in_32_bits)
    model = random_model("qwen2")
    model.resize_token_embeddings(258)
    exact = gradient(model, [collate(samples(), 0, packed=True)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = gradient(model, [collate(samples(), 0, packed=True)])
    torch.testing.assert_close(loss, exact[0], rtol=0.02, atol=0.02)
    assert all(torch.isfinite(g).all() for g in gradients)
    prompts = [Prompt(Problem(str(s.prompt_ids), "", ""), s.prompt_ids) for s in samples()[::4]]
    sampler = HFSampler(model, tokenizer, 8, torch.bfloat16)
    completions = sampler.sample(prompts, 2, Sampling(6), (0, 0))
    sampled = [Sample(prompts[i // 2].ids, c.ids, 0.0, c.logprobs) for i, c in enumerate(completions)]
    batch = collate(sampled, 0, packed=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        trained_BT = log_probs.token_logprobs(model, batch, 1.0)
    torch.testing.assert_close(trained_BT, batch.old_logprobs_BT, rtol=0, atol=0.03)


@pytest.mark.parametrize("in_32_bits", [{"cpu"}, set()], ids=["as on CPUs", "as on GPUs"])
@pytest.mark.parametrize(("group_size", "max_sequences"), [(4, 64), (4, 7), (1, 64), (1, 1)])
@pytest.mark.parametrize(("family", "windows"), [*CASES, ("deepseek_v3", False)])
def test_log_probs_of_sampling_are_those_of_padded_rows(
    family, windows, group_size, max_sequences, in_32_bits, tokenizer, monkeypatch
):
    """Whole groups, parts of groups, single completions, with and without padding; completions leave one after the other."""
    monkeypatch.setattr(packing, "IN_32_BITS", in_32_bits)
    model = random_model(family, windows)
    model.generation_config.eos_token_id = [*range(50, 60)]  # one token in six
    prompts = [Prompt(Problem(str(i), "", ""), tuple(range(3, 3 + n))) for i, n in enumerate([4, 9, 1, 6, 2, 9, 5, 3] * 2)]
    completions = HFSampler(model, tokenizer, max_sequences).sample(prompts, group_size, Sampling(20, temperature=0.7), (0,))
    assert len({len(c.ids) for c in completions}) > 5
    rows = [Sample(prompts[i // group_size].ids, c.ids, 0.0) for i, c in enumerate(completions)]
    expected_BT = log_probs.token_logprobs(model.eval(), collate(rows, 0), 0.7).detach()
    for row, completion in enumerate(completions):
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected_BT[row, : len(completion.ids)])


def test_shared_prompts_that_have_no_completion_left_are_dropped():
    model = random_model("qwen2")
    cache = RoomyCache(model.config, torch.float32)
    mask_PC = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    with torch.no_grad():
        read(model, torch.full_like(mask_PC, 5), mask_PC, cache)
    prompts = SharedPrompts(cache, mask_PC, [0, 0, 1, 1, 2, 2])
    prompts.stay(torch.tensor([0, 5, 4, 3]))  # four of six places: they keep theirs, among (3 prompts, 2 heads, 2 places)
    assert prompts.places_BH.tolist() == [[0, 2], [9, 11], [8, 10], [5, 7]]
    prompts.stay(torch.tensor([1, 2]))  # both of the third prompt
    assert prompts.places_BH.tolist() == [[0, 2], [1, 3]]
    for (keys, values), layer in zip(prompts.layers, cache.layers, strict=True):
        torch.testing.assert_close((keys, values), (layer.keys[2], layer.values[2]))
    assert (prompts.added == 0).all()  # it has no padding


def test_models_that_cannot_are_left_alone(tokenizer):
    """Scaled or capped logits, masks and attention classes of their own, both directions, another attention asked for."""
    capped = {"model_type": "gemma2", **SMALL, "head_dim": 8, "final_logit_softcapping": 1.0}
    scaled = {"model_type": "granite", **SMALL, "logits_scaling": 8.0}
    own_class = {"model_type": "nemotron", **SMALL}
    both_ways = {"model_type": "bert-generation", **SMALL}
    for architecture in (capped, scaled, own_class, both_ways):
        model = load_policy("", architecture=architecture)
        assert not packing.enabled(model), architecture
        assert torch.isfinite(log_probs.token_logprobs(model, collate(samples(), 0), 1.0)).all()
    shape = {"model_type": "qwen2", **SMALL, "vocab_size": 258}
    eager = load_policy("", "bfloat16", shape, attn_implementation="eager")
    assert not packing.enabled(eager)
    prompt = Prompt(Problem("a", "", ""), (5, 6))
    assert HFSampler(eager, tokenizer, 8).sample([prompt], 2, Sampling(4), (0, 0))  # whose cache keeps its 16 bits


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_that_packed_rows_would_lose_are_noticed_when_a_model_is_loaded(family, monkeypatch):
    monkeypatch.setattr(packing, "_within", lambda window, queries, keys, mask: mask)  # as of a layer that passes no window
    model = random_model(family, windows=True)
    assert not packing.enabled(model)
    windows = {getattr(part, "sliding_window", None) for part in (model.config, *model.modules())}
    assert windows == {None, WINDOW}  # the short ones of the check are gone
