import runpy

import pytest
import torch
from conftest import NANO

from dash_exp import model
from dash_exp.errors import UserError
from dash_exp.record import save_model


def test_the_shipped_policy_loads_and_is_small():
    policy = model.load_policy(str(model.ASSETS / "tiny"))
    assert policy.training
    assert sum(p.numel() for p in policy.parameters()) < 2_000_000
    assert model.context_length(policy) == 2048


def test_the_shipped_tokenizer_is_what_its_script_makes(tokenizer):
    made = runpy.run_path(str(model.ASSETS / "make_tokenizer.py"))["byte_tokenizer"]()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert tokenizer("A:1").input_ids == made("A:1").input_ids


def test_the_tokenizer_gives_any_text_back_also_next_to_a_model(tokenizer, policy, tmp_path):
    """Transformers picks another class for a tokenizer that lies beside a Qwen2 config: the saved folder must agree."""
    save_model(policy, tokenizer, tmp_path / "saved")
    saved = model.load_tokenizer(str(tmp_path / "saved"))
    text = "3 plus 4  is {é} \n"
    assert saved(text).input_ids == tokenizer(text).input_ids
    assert saved.decode(saved(text).input_ids) == text
    assert len(tokenizer(text).input_ids) == len(text.encode())


def test_reference_is_frozen_and_apart(policy):
    reference = model.frozen_copy(policy)
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    assert not torch.equal(next(policy.parameters()), next(reference.parameters()))


def test_eos_ids_of_model_and_tokenizer(policy, tokenizer):
    policy.generation_config.eos_token_id = [1, 7]
    assert model.eos_ids(policy, tokenizer) == {1, 7}


def test_random_weights_depend_on_the_seed_alone():
    def first(seed):
        torch.manual_seed(seed)
        return next(model.load_policy("", architecture=NANO).parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_folders_without_a_model(tmp_path, policy):
    with pytest.raises(UserError, match=r"has no config\.json"):
        model.load_policy(str(tmp_path))
    policy.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no weights"):
        model.load_policy(str(tmp_path))


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"^model\.path=\./nowhere: there is no such folder"):
        model.check_folder("./nowhere")


def test_weights_that_were_cut_off(tmp_path, policy):
    policy.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"could not be loaded \(.*header"):
        model.load_policy(str(tmp_path))


def test_pickled_weights_are_not_loaded(tmp_path, policy):
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no weights"):
        model.load_policy(str(tmp_path))


def test_a_name_that_the_hub_does_not_know():
    with pytest.raises(UserError, match=r"model\.path=nobody/nothing: could not be loaded"):
        model.load_policy("nobody/nothing")
