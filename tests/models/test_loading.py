import runpy

import pytest
import torch
from conftest import NANO

from dash_exp.core.errors import UserError
from dash_exp.models import loading
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


@pytest.mark.parametrize("settings", [{"model_type": "nope"}, {"num_hidden_layers": "two"}, {"vocab_size": -5}])
def test_an_architecture_that_makes_no_model(settings):
    with pytest.raises(UserError, match=r"^model\.architecture: describes no model \("):
        loading.load_policy("", architecture=NANO | settings)
