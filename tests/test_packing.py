"""Packed micro-batches give the numbers of padded ones, in every family of models that may read them."""

import copy
import random

import pytest
import torch

from dash_exp import ops, packing
from dash_exp.batch import collate, micro_batches
from dash_exp.model import load_policy
from dash_exp.types import Sample

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "olmo2", "phi3", "smollm3"]


def samples(seed=0, prompts=5):
    rng = random.Random(seed)
    ids = lambda most: tuple(rng.randint(3, 60) for _ in range(rng.randint(1, most)))  # noqa: E731
    return [Sample(prompt, ids(12), rng.uniform(-1, 1)) for prompt in [ids(9) for _ in range(prompts)] for _ in range(4)]


def random_model(family):
    torch.manual_seed(0)
    window = {"sliding_window": None} if family in ("phi3", "mistral") else {}
    return load_policy("", architecture={"model_type": family, **SMALL, **window})


def gradient(model, batches, temperature=0.7):
    model.zero_grad()
    loss = torch.tensor(0.0)
    for batch in batches:
        logprobs_BT = ops.token_logprobs(model, batch, temperature)
        loss_BT = logprobs_BT * batch.advantages_B[:, None]
        loss_BT.sum().backward()
        loss += loss_BT.detach().sum()
    return loss, [p.grad.clone() for p in model.parameters()]


def test_layout_by_hand():
    packed = packing.pack([((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((11,), (12, 13))])
    assert packed.ids_N.tolist() == [5, 6, 7, 11, 8, 9, 10, 12, 13]
    assert packed.positions_N.tolist() == [0, 1, 2, 0, 3, 4, 3, 1, 2]
    assert packed.before_K.tolist() == [2, 4, 2, 3, 7]
    assert packed.prompt_B.tolist() == [0, 0, 1]
    assert packed.mask_B1TS[2, 0].tolist() == [[True, False, False, True, False], [True, False, False, True, True]]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_equal_those_of_padded_rows(family):
    model = random_model(family)
    assert packing.enabled(model)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    assert not packing.enabled(plain)
    torch.testing.assert_close(
        ops.token_logprobs(model, collate(samples(), 0, packed=True), 0.7),
        ops.token_logprobs(plain, collate(samples(), 0), 0.7),
    )
    packed = gradient(model, [batch for _, batch in micro_batches(samples(), 40, 0, packed=True)])
    alone = gradient(plain, [collate([sample], 0) for sample in samples()])
    torch.testing.assert_close(packed, alone)


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
    monkeypatch.setattr(ops, "LOGITS", 10 * SMALL["vocab_size"])
    torch.testing.assert_close(gradient(model, [collate(samples(), 0, packed=True)]), expected)
    tokens = sum(len(s.completion_ids) for s in samples())
    assert max(rows) == 10 and sum(rows) == 2 * tokens  # each piece again in the backward pass


def test_models_that_cannot_are_left_alone():
    window = {"model_type": "mistral", **SMALL, "sliding_window": 4}
    scaled = {"model_type": "granite", **SMALL, "logits_scaling": 8.0}
    for architecture in (window, scaled, {"model_type": "gemma3_text", **SMALL, "head_dim": 8}):
        assert not packing.enabled(load_policy("", architecture=architecture))
    assert not packing.enabled(load_policy("", architecture={"model_type": "qwen2", **SMALL}, attn_implementation="eager"))
