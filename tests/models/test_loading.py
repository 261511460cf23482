import runpy

import pytest
import torch
from conftest import NANO
from special_tokens import EOS, made
from transformers import AutoConfig, AutoModelForCausalLM

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion
from dash_exp.models import loading
from dash_exp.models.texts import decoded
from dash_exp.training.record import save_model


def test_the_shipped_policy_loads_and_is_small():
    policy = loading.load_policy(str(loading.ASSETS / "tiny"))
    assert policy.training
    assert sum(p.numel() for p in policy.parameters()) < 2_000_000
    assert loading.context_length(policy) == 2048


def test_the_shipped_tokenizer_is_what_its_script_makes(tokenizer):
    made = runpy.run_path(str(loading.ASSETS / "make_tokenizer.py"))["byte_tokenizer"]()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert tokenizer("A:1").input_ids == made("A:1").input_ids


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(tmp_path):
    """As Llama 3's and GPT-2's. What a completion says does not change: EOS is no part of it."""
    made(pad_token=None).save_pretrained(tmp_path)
    tokenizer = loading.load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    ids = [*tokenizer("2.", add_special_tokens=False).input_ids, EOS]
    assert decoded(tokenizer, [Completion(ids, None, truncated=False)]) == ["2."]
    made(pad_token=None, eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        loading.load_tokenizer(str(tmp_path))


def test_the_tokenizer_gives_any_text_back_also_next_to_a_model(tokenizer, policy, tmp_path):
    """Transformers picks another class for a tokenizer that lies beside a Qwen2 config: the saved folder must agree."""
    save_model(policy, tokenizer, tmp_path / "saved")
    saved = loading.load_tokenizer(str(tmp_path / "saved"))
    text = "3 plus 4  is {é} \n"
    assert saved(text).input_ids == tokenizer(text).input_ids
    assert saved.decode(saved(text).input_ids) == text
    assert len(tokenizer(text).input_ids) == len(text.encode())


def test_reference_is_frozen_and_apart(policy):
    reference = loading.frozen_copy(policy)
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    assert not torch.equal(next(policy.parameters()), next(reference.parameters()))


def test_eos_ids_of_model_and_tokenizer(policy, tokenizer):
    policy.generation_config.eos_token_id = [1, 7]
    assert loading.eos_ids(policy, tokenizer) == {1, 7}


def test_random_weights_depend_on_the_seed_alone():
    def first(seed):
        torch.manual_seed(seed)
        return next(loading.load_policy("", architecture=NANO).parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
NOISY = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64},  # three kinds of dropout of 0.1 by default
    "gpt_neox": SIZES | {"intermediate_size": 48, "hidden_dropout": 0.3},
    "falcon": SIZES | {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "qwen2": SIZES | {"intermediate_size": 48, "num_key_value_heads": 1, "attention_dropout": 0.3},
    "llama": SIZES | {"intermediate_size": 48, "num_key_value_heads": 1, "attention_dropout": 0.3},
    "qwen3": SIZES | {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "attention_dropout": 0.3},
    "gemma3_text": SIZES | {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "attention_dropout": 0.3},
    "opt": SIZES | {"word_embed_proj_dim": 32, "ffn_dim": 48, "layerdrop": 0.5},
    "mixtral": SIZES | {"num_key_value_heads": 1, "num_local_experts": 4, "router_jitter_noise": 0.3},
}


def in_both_modes(model):
    """Logits in training and in evaluation mode."""
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        return model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("family", NOISY)
def test_a_policy_computes_the_same_in_training_and_in_sampling(family, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, bos_token_id=1, eos_token_id=1, pad_token_id=0, **NOISY[family])
    plain = AutoModelForCausalLM.from_config(config)
    with_noise, without = in_both_modes(plain)
    assert (with_noise - without).abs().max() > 1e-3  # there is something to switch off
    plain.save_pretrained(tmp_path)
    policy = loading.load_policy(str(tmp_path))
    for got in in_both_modes(policy):
        torch.testing.assert_close(got, without)
    policy.train().gradient_checkpointing_enable()
    ids = torch.arange(3, 27).view(2, 12)
    torch.testing.assert_close(policy(input_ids=ids).logits, without)


def test_the_dropout_of_an_adapter_stays_as_it_is_set():
    pytest.importorskip("peft")
    policy = loading.load_policy("", architecture=NANO | {"attention_dropout": 0.3}, lora={"dropout": 0.25})
    assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, policy, bad):
    with torch.no_grad():
        policy.model.norm.weight[3] = bad
    policy.save_pretrained(folder)
    with pytest.raises(UserError, match=r"model\.norm\.weight has numbers that are not finite"):
        loading.load_policy(str(folder))


def test_weights_that_are_not_all_there(folder, policy):
    weights = {k: v.clone() for k, v in policy.state_dict().items() if "layers.1" not in k and k != "lm_head.weight"}
    policy.save_pretrained(folder, state_dict=weights)
    with pytest.raises(UserError, match=r"has no weights for model\.layers\.1\..* more"):
        loading.load_policy(str(folder))


def test_a_tokenizer_with_more_tokens_than_the_model(folder, tokenizer):
    policy = loading.load_policy(str(folder))
    loading.check_vocabulary(policy, tokenizer, str(folder))
    small = loading.load_policy("", architecture=NANO | {"vocab_size": 100})
    with pytest.raises(UserError, match=r"has a vocabulary of 100 tokens, and the largest id of the tokenizer is 257"):
        loading.check_vocabulary(small, tokenizer, "x")
    with pytest.raises(UserError, match=r"^model\.architecture: has .* Write model\.architecture\.vocab_size=258 or more"):
        loading.check_vocabulary(small, tokenizer, None)


@pytest.mark.parametrize("settings", [{"model_type": "nope"}, {"num_hidden_layers": "two"}, {"vocab_size": -5}])
def test_an_architecture_that_makes_no_model(settings):
    with pytest.raises(UserError, match=r"^model\.architecture: describes no model \("):
        loading.load_policy("", architecture=NANO | settings)
