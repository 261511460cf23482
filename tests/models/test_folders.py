import ast
import json
import os
import pickle

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from tiny_models import change

from dash_exp.core.errors import UserError
from dash_exp.models import loading


def test_folders_without_a_model(tmp_path, policy):
    with pytest.raises(UserError, match=r"has no config\.json"):
        loading.load_policy(str(tmp_path))
    policy.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no weights"):
        loading.load_policy(str(tmp_path))


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"^model\.path=\./nowhere: there is no such folder"):
        loading.check_folder("./nowhere")


def test_pickled_weights_are_not_loaded(tmp_path, policy):
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"its weights only as a pickle \(pytorch_model\.bin\)"):
        loading.load_policy(str(tmp_path))


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
    with pytest.raises(UserError, match=f"its weights only as a pickle \\({name}\\), and reading a pickle runs the code in it"):
        loading.load_policy(str(folder))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="only as a pickle"):
        loading.load_policy(str(folder))
    (folder / "other.safetensors").touch()
    with pytest.raises(UserError, match=f"model.safetensors.index.json names {name}, which is not a safetensors file"):
        loading.load_policy(str(folder))
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()  # it would have been seen


def test_an_index_that_names_what_is_not_there(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(UserError, match=r"names model-00001-of-00002\.safetensors, which does not exist"):
        loading.load_policy(str(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json has no readable weight_map"):
        loading.load_policy(str(folder))


def test_no_source_reads_pickles():
    """`torch.load` of weights alone, and nothing else that could unpickle."""
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "train.py"]:
        tree = ast.parse(file.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        parts = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {p.module for p in parts if {a.name for a in p.names} - {"Parallel", "delayed"}}  # of joblib: not its load
        unpickles = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        assert imported & unpickles == ({"marshal"} if file.name == "sandbox.py" else set()), file  # it sends its own code
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name != "torch.load" or given.get("weights_only") == "True", f"{file}: {ast.unparse(call)}"
            assert given.get("allow_pickle", "False") == "False", f"{file}: {ast.unparse(call)}"
            assert name.rpartition(".")[2] not in ("read_pickle", "unsafe_load"), f"{file}: {ast.unparse(call)}"


TORN = {
    "generation_config.json": ('{"eos_token_id": 1', "generation_config.json is damaged or cut off: it is not valid JSON"),
    "config.json": ("", "config.json is empty: it is not valid JSON"),
    "model.safetensors.index.json": ("[]", "model.safetensors.index.json is not a JSON object"),
    "tokenizer.json": ("{", "tokenizer.json is damaged or cut off"),
    "tokenizer_config.json": ("[1]", "tokenizer_config.json is not a JSON object"),
    "special_tokens_map.json": ('{"a', "special_tokens_map.json is damaged or cut off"),
    "model.safetensors": ("version https://git-lfs.github.com/spec/v1\nsize 9\n", "is a pointer of Git LFS, not the weights"),
}


@pytest.mark.parametrize("name", TORN)
def test_files_that_were_cut_off_are_named(folder, tokenizer, name):
    text, message = TORN[name]
    tokenizer.save_pretrained(folder)
    (folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        loading.load_tokenizer(str(folder))
        loading.check_folder(str(folder))
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_a_file_that_is_not_utf_8(folder):
    (folder / "generation_config.json").write_bytes('{"of": "é"}'.encode("latin-1"))  # é is the byte after {"of": "
    with pytest.raises(UserError, match=r"generation_config\.json is not UTF-8 \(byte 8\)\. Save it in UTF-8"):
        loading.check_folder(str(folder))


@pytest.mark.parametrize("left", [0, 4, 8, 100, -1])
def test_weights_that_were_cut_off(folder, left):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:left])
    message = f"has {len(whole) - 1:,} bytes and should have {len(whole):,}" if left == -1 else "has no readable header"
    with pytest.raises(UserError, match=message):
        loading.check_folder(str(folder))


def test_tables_that_earlier_versions_saved_with_the_weights(folder):
    """They are no parameters, and their names are of no use to the model."""
    weights = load_file(folder / "model.safetensors")
    names = (
        "self_attn.masked_bias",
        "self_attn.rotary_emb.inv_freq",
        "self_attn.rotary_emb.cos_cached",
        "self_attn.q_proj.k_scale",
    )
    more = {f"model.layers.0.{name}": torch.ones(2) for name in names} | {"model.version": torch.ones(1)}
    save_file(weights | more | {"model.vision.proj.weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    assert loading.load_policy(str(folder)).num_parameters() == sum(w.numel() for w in weights.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, r"config\.json, which has no model\.layers\.1\."),
        ({"model_type": "llama"}, r"config\.json, which has no model\.layers\.0\.self_attn\.[kqv]_proj\.bias \(one of 6\)"),
        (
            {"intermediate_size": 48},
            r"model\.layers\.0\.mlp\.\w+\.weight has the sizes \[\d+, \d+\] and \[\d+, \d+\] in",
        ),
    ],
    ids=["fewer layers", "layers without biases", "other sizes"],
)
def test_weights_of_another_model_than_config_json_describes(folder, changed, message):
    """Transformers leaves out what it has no place for."""
    change(folder / "config.json", **changed)
    with pytest.raises(UserError, match=message):
        loading.load_policy(str(folder))
