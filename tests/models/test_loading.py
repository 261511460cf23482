import ast
import json
import os
import pickle
import runpy

import pytest
import torch
from conftest import NANO, ROOT, save_scorer

from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.rewards.model import ModelReward
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


def test_folders_without_a_model(tmp_path, policy):
    with pytest.raises(UserError, match=r"has no config\.json"):
        loading.load_policy(str(tmp_path))
    policy.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no weights"):
        loading.load_policy(str(tmp_path))


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"^model\.path=\./nowhere: there is no such folder"):
        loading.check_folder("./nowhere")


def test_weights_that_were_cut_off(tmp_path, policy):
    policy.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"could not be loaded \(.*header"):
        loading.load_policy(str(tmp_path))


def test_pickled_weights_are_not_loaded(tmp_path, policy):
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"weights as a pickle alone \(pytorch_model\.bin\)"):
        loading.load_policy(str(tmp_path))


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries, where there is no network
    with pytest.raises(UserError, match=r"model\.path=nobody/nothing: could not be loaded"):
        loading.load_policy("nobody/nothing")


# --- folders that are torn, that do not fit, or that want to run code ----------------------------------------------------


@pytest.fixture
def folder(tmp_path, policy, tokenizer):
    save_model(policy, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_never_read(folder, tmp_path, name):
    marker = tmp_path / "unpickled"
    (folder / name).write_bytes(pickle.dumps(Marker(marker)))
    assert loading.load_policy(str(folder)) is not None  # beside safetensors it is left alone
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"weights as a pickle alone \\({name}\\), and to read one is to run the code in it"):
        loading.load_policy(str(folder))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="pickle alone"):
        loading.load_policy(str(folder))
    (folder / "other.safetensors").touch()
    with pytest.raises(UserError, match=f"model.safetensors.index.json names {name}, which is no safetensors file"):
        loading.load_policy(str(folder))
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()  # it would have been seen


def test_an_index_that_names_what_is_not_there(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(UserError, match=r"names model-00001-of-00002\.safetensors, which is not there"):
        loading.load_policy(str(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json has no weight_map"):
        loading.load_policy(str(folder))


def test_no_source_reads_pickles():
    """`torch.load` of weights alone, and nothing else that could unpickle."""
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "train.py"]:
        tree = ast.parse(file.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        parts = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {p.module for p in parts if {a.name for a in p.names} - {"Parallel", "delayed"}}  # of joblib: not its load
        assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, file
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name != "torch.load" or given.get("weights_only") == "True", f"{file}: {ast.unparse(call)}"
            assert given.get("allow_pickle", "False") == "False", f"{file}: {ast.unparse(call)}"
            assert name.rpartition(".")[2] not in ("read_pickle", "unsafe_load"), f"{file}: {ast.unparse(call)}"


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, policy, bad):
    with torch.no_grad():
        policy.model.norm.weight[3] = bad
    policy.save_pretrained(folder)
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers that are not finite"):
        loading.load_policy(str(folder))


def test_weights_that_are_not_all_there(folder, policy):
    weights = {k: v.clone() for k, v in policy.state_dict().items() if "layers.1" not in k and k != "lm_head.weight"}
    policy.save_pretrained(folder, state_dict=weights)
    with pytest.raises(UserError, match=r"has no weights for model\.layers\.1\..* more"):
        loading.load_policy(str(folder))


def test_weights_of_another_shape(folder):
    change(folder / "config.json", hidden_size=64)
    with pytest.raises(UserError, match="could not be loaded"):
        loading.load_policy(str(folder))


@pytest.mark.parametrize(("text", "says"), [("{torn", "not a valid JSON"), ("[]", "could not be"), ("{}", "model_type")])
def test_a_configuration_that_is_none(folder, text, says):
    (folder / "config.json").write_text(text)
    for load in (loading.load_policy, loading.load_architecture):
        with pytest.raises(UserError, match=says):
            load(str(folder))


def test_a_tokenizer_with_more_tokens_than_the_model(folder, tokenizer):
    policy = loading.load_policy(str(folder))
    loading.check_vocabulary(policy, tokenizer, str(folder))
    small = loading.load_policy("", architecture=NANO | {"vocab_size": 100})
    with pytest.raises(UserError, match=r"has a vocabulary of 100 tokens, and the tokenizer's go up to 257"):
        loading.check_vocabulary(small, tokenizer, "x")


@pytest.mark.parametrize("settings", [{"model_type": "nope"}, {"num_hidden_layers": "two"}, {"vocab_size": -5}])
def test_an_architecture_that_makes_no_model(settings):
    with pytest.raises(UserError, match=r"^model\.architecture: makes no model \("):
        loading.load_policy("", architecture=NANO | settings)
