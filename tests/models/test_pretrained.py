"""Folders and names that cannot be loaded, and code that must not run."""

import pytest
from conftest import save_scorer
from tiny_models import change

from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.rewards.model import ModelReward


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries, where there is no network
    with pytest.raises(UserError, match=r"model\.path=nobody/nothing: could not be loaded"):
        loading.load_policy("nobody/nothing")


CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
class OwnConfig(Qwen2Config):
    model_type = {kind!r}
class Own(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("kind", ["own", "qwen2"])
def test_code_of_a_model_runs_only_where_it_is_trusted(folder, tmp_path, monkeypatch, kind):
    """Also where Transformers has a class of its own for the model_type."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(marker), kind=kind))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    change(folder / "config.json", auto_map=auto, model_type=kind)
    for refused in (loading.load_policy, loading.load_architecture, loading.load_tokenizer):
        with pytest.raises(UserError, match=r"asks to run Python code .* Add model\.trust_remote_code=true where you trust it"):
            refused(str(folder))
    assert not marker.exists()
    policy = loading.load_policy(str(folder), trust_remote_code=True)
    assert marker.exists()
    assert type(policy).__name__ == "Own"


def test_code_of_a_tokenizer_does_not_run(folder, tmp_path):
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(marker), kind="own") + "class OwnTokenizer(Qwen2Tokenizer): pass")
    change(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]}, tokenizer_class="OwnTokenizer"
    )
    with pytest.raises(UserError, match=r"^model\.tokenizer=.*auto_map in tokenizer_config\.json"):
        loading.load_tokenizer(str(folder))
    with pytest.raises(UserError, match=r"^teacher\.tokenizer=.*\. Take auto_map out"):  # which cannot be trusted
        loading.load_tokenizer(str(folder), "teacher.tokenizer")
    assert not marker.exists()


def test_code_of_a_reward_model_never_runs(tmp_path):
    scorer, marker = save_scorer(tmp_path / "scorer"), tmp_path / "ran"
    (scorer / "own.py").write_text(CODE.format(marker=str(marker), kind="own"))
    change(scorer / "config.json", auto_map={"AutoModelForSequenceClassification": "own.Own"})
    with pytest.raises(UserError, match=r"^reward\.path=.*Take auto_map out"):
        ModelReward(str(scorer))
    assert not marker.exists()


def test_weights_of_another_shape(folder):
    change(folder / "config.json", hidden_size=64)
    with pytest.raises(UserError, match=r"has the sizes .* in config\.json\. Give weights and config\.json of one model"):
        loading.load_policy(str(folder))


@pytest.mark.parametrize(("text", "says"), [("{torn", "not valid JSON"), ("[]", "not a JSON object"), ("{}", "model_type")])
def test_a_configuration_that_is_none(folder, text, says):
    (folder / "config.json").write_text(text)
    for load in (loading.load_policy, loading.load_architecture):
        with pytest.raises(UserError, match=says):
            load(str(folder))
