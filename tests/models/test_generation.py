"""Generation configurations: what is refused when the model is loaded, and what is written with the weights."""

import json

import pytest
from transformers import GenerationConfig

from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.training.record import save_model

NO_TOKEN = r"generation_config\.json\) is no id of a token\. Write a whole number of at least 0, or a list of them"
BAD = [
    ({"eos_token_id": "</s>"}, f"eos_token_id='</s>' in its .*{NO_TOKEN}"),
    ({"eos_token_id": [1, "a"]}, NO_TOKEN),
    ({"eos_token_id": [[1]]}, NO_TOKEN),
    ({"eos_token_id": 1.0}, NO_TOKEN),
    ({"eos_token_id": True}, NO_TOKEN),
    ({"eos_token_id": -1}, NO_TOKEN),
    (
        {"early_stopping": True},
        r"Transformers cannot write its generation configuration \(`early_stopping`: .*Take that",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[str(given) for given, _ in BAD])
def test_what_is_refused(folder, given, message):
    (folder / "generation_config.json").write_text(json.dumps(given))
    for load in (loading.load_policy, loading.load_architecture):
        with pytest.raises(UserError, match=message):
            load(str(folder))


MANY = [{"temperature": 0.6, "top_p": 0.9}, {"top_k": 20, "do_sample": False}, {"eos_token_id": [1, 7]}]


@pytest.mark.parametrize("given", MANY)
def test_what_many_models_have_is_written_with_the_weights(folder, tokenizer, tmp_path, given):
    """Transformers refuses to write a temperature without `do_sample`, and the weights with it."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1} | given))
    save_model(loading.load_policy(str(folder)), tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    written = GenerationConfig.from_pretrained(tmp_path / "saved").to_dict()
    kept = {name: value for name, value in given.items() if name != "do_sample"}
    assert {name: written[name] for name in kept} == kept
