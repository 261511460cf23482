"""Bytes by kind, on tensors without contents."""

import pytest
import torch
from conftest import NANO
from transformers import AutoConfig

from dash_exp.models import loading
from dash_exp.planning import memory
from dash_exp.planning.beside import ScorerSizes
from dash_exp.planning.load import Adapters, BackwardPass, DecodingBatch, Load


def load(**changes):
    settings = {
        "config": AutoConfig.for_model(**NANO),
        "dtype": torch.float32,
        "compute_dtype": torch.float32,
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "reference": False,
        "reference_in_reward": False,
        "adapters": None,
        "moment_bytes": 8,
        "master_weights": False,
        "packed": True,
        "on_gpu": False,
        "shards": 1,
        "update": BackwardPass(completions=4, longest=20, tokens=80, prompts=1, prompt_tokens=5),
        "decode": (),
    }
    return Load(**(settings | changes))


def test_what_stays_is_counted():
    weights = 4 * sum(p.numel() for p in loading.load_policy("", architecture=NANO).parameters())
    parts = memory.peaks(load(reference=True))["update"]
    buffers = 128  # of the positions
    assert parts["weights"] == pytest.approx(weights, abs=buffers) == parts["reference"]
    assert parts["optimizer"] == 2 * weights
    halved = memory.peaks(load(shards=2))["update"]
    assert (halved["weights"], halved["optimizer"]) == (pytest.approx(weights / 2, abs=buffers), weights)
    assert load(reference=True).lasting_bytes(weights // 4, weights // 4) == 5 * weights


def test_a_cache_has_the_room_that_the_sampler_makes():
    """Room for 64 tokens more than at first: 5 of the prompt, 1 of a completion. A layer has keys and values, 1 head of 16."""
    of_token = 2 * 2 * 16 * 4
    decode = (DecodingBatch(prompts=1, completions=400, tokens=20, prompt_tokens=5),)
    once = memory.peaks(load(decode=decode))["sample"]
    assert once["KV cache"] == pytest.approx(of_token * ((5 + 64) + 400 * (1 + 64)), rel=0.01)
    each = memory.peaks(load(decode=decode, on_gpu=True))["sample"]  # as on a GPU
    assert each["KV cache"] == pytest.approx(of_token * 400 * (6 + 64), rel=0.01)


def test_fewer_bytes_with_checkpointing_adapters_and_16_bits():
    deep = AutoConfig.for_model(**(NANO | {"num_hidden_layers": 8}))
    plain = memory.peaks(load(config=deep))["update"]
    assert memory.peaks(load(config=deep, gradient_checkpointing=True))["update"]["activations"] < 0.5 * plain["activations"]
    adapters = memory.peaks(load(config=deep, adapters=Adapters(2, ("q_proj",)), reference=True))["update"]
    assert adapters["optimizer"] == 8 * 8 * 2 * (32 + 32)  # 8 bytes; of 8 layers, 2 x (inputs + outputs)
    assert "reference" not in adapters
    changes = {"dtype": torch.bfloat16, "compute_dtype": torch.bfloat16, "moment_bytes": 4, "on_gpu": True}
    half = memory.peaks(load(config=deep, **changes))
    assert half["update"]["weights"] == pytest.approx(plain["weights"] / 2, rel=0.01)


def test_gradients_of_earlier_passes_are_there_from_the_start():
    one = load()
    again = BackwardPass(**(vars(one.update) | {"several": True}))
    first, later = (memory.peaks(load(update=size))["update"] for size in (one.update, again))
    numbers = loading.load_policy("", architecture=NANO).num_parameters()
    assert first.get("gradients", 0) < 4 * numbers == later["gradients"]


@pytest.mark.parametrize("shards", [1, 4])
def test_sampling_in_16_bits_has_a_copy_of_the_linear_layers(shards):
    """With FSDP of the gathered model, so it is not divided. No layer is cast once more, by autocast."""
    wide = AutoConfig.for_model(**(NANO | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}))
    decode = (DecodingBatch(prompts=1, completions=1, tokens=4, prompt_tokens=4),)
    given = {"config": wide, "decode": decode, "shards": shards}
    parts = memory.peaks(load(**given, compute_dtype=torch.bfloat16))["sample"]
    linear = [m for m in loading.load_policy("", architecture=wide.to_dict()).modules() if isinstance(m, torch.nn.Linear)]
    assert parts["cast weights"] == 2 * sum(p.numel() for m in linear for p in m.parameters())
    assert parts["activations"] < parts["cast weights"] / 4
    assert "cast weights" not in memory.peaks(load(**given))["sample"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_of_logits_are_those_of_the_device(dtype):
    """2,048 tokens x 200,000 are 1,638 MB in 32 bits. A CPU keeps 128 MiB of logits and computes as many once more, a GPU twice
    as many; beside them are rows of a softmax in 32 bits.
    """
    config = AutoConfig.for_model(**(NANO | {"vocab_size": 200_000}))
    update = BackwardPass(completions=64, longest=32, tokens=2048, prompts=1, prompt_tokens=2)
    loads = [load(config=config, update=update, on_gpu=on, compute_dtype=dtype) for on in (False, True)]
    cpu, gpu = (memory.peaks(each)["update"]["logits"] for each in loads)
    assert 0.9 * 2 * 2**27 < cpu < 2 * 2**27 + 3 * 2**22
    assert 0.9 * 2 * 2**28 < gpu < 2 * 2**28 + 3 * 2**26


def test_a_kl_in_the_reward_is_computed_before_the_update():
    within, before = (memory.peaks(load(reference=True, reference_in_reward=r, shards=2)) for r in (False, True))
    assert "score" not in within and before["score"]["activations"] > 0
    assert before["update"]["reference"] == 2 * within["update"]["reference"]  # FSDP does not divide it


def test_a_reward_model_takes_what_its_largest_batch_needs():
    config = AutoConfig.for_model(**NANO, num_labels=1)
    sizes = [ScorerSizes(config, torch.float32, 0, on_gpu=True, rows=rows, tokens=32) for rows in (8, 64)]
    small, large = map(memory.scoring_bytes, sizes)
    wide = 64 * 32 * NANO["intermediate_size"] * 4  # what a feed-forward layer holds at least once
    assert wide < large and small < large / 4


def total(parts):
    return sum(parts.values())


def test_deep_models_are_those_that_few_layers_let_expect():
    config, decode = AutoConfig.for_model(**(NANO | {"num_hidden_layers": 12})), (DecodingBatch(2, 8, 20, 5),)
    deep = load(config=config, reference=True, decode=decode)
    exact, expected = memory.peaks(deep), memory.extrapolated_peaks(deep, 4)
    assert {p: total(x) for p, x in expected.items()} == pytest.approx({p: total(x) for p, x in exact.items()}, rel=0.02)
