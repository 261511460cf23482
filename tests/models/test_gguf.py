"""A .gguf file as a model."""

import pytest
import torch
from gguf_files import written
from transformers import AutoModelForCausalLM, AutoTokenizer

from dash_exp.commands.evaluate.configuration import _check_model
from dash_exp.core.errors import UserError
from dash_exp.models import gguf, loading
from dash_exp.models.folders import check_folder
from dash_exp.models.texts import frame
from dash_exp.sampling.engine import weight_shapes
from dash_exp.training.record import save_model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_it_is_a_model_like_any_other(file, tmp_path):
    """Its weights can be trained, and its checkpoint is a folder that Transformers alone reads, with the same logits."""
    _check_model(str(file))
    policy, tokenizer = loading.load_policy(str(file)), loading.load_tokenizer(str(file))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in policy.parameters())
    assert loading.eos_ids(policy, tokenizer) == {2}
    assert weight_shapes(policy.config).keys() == policy.state_dict().keys()
    empty = loading.load_architecture(str(file))
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in policy.named_parameters()}
    save_model(policy, tokenizer, tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 20, 21, 22]])
    torch.testing.assert_close(again(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "12 + 3 = {x}\n"
    assert saved(text).input_ids == tokenizer(text).input_ids and saved.decode(saved(text).input_ids) == text
    assert saved.apply_chat_template([{"role": "user", "content": text}], tokenize=False) == text


def test_the_file_is_what_identifies_the_weights(file, tmp_path):
    whole = file.read_bytes()
    (tmp_path / "copy.gguf").write_bytes(whole)
    (tmp_path / "other.gguf").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    first, copy, other = (loading.fingerprint(str(f)) for f in (file, tmp_path / "copy.gguf", tmp_path / "other.gguf"))
    assert first == copy != other


@pytest.mark.parametrize(("bos", "front"), [(None, []), (False, []), (True, [1])])
def test_bos_stands_before_a_text_where_the_file_says_so(bos, front, tmp_path):
    tokenizer = loading.load_tokenizer(str(written(tmp_path / "bos.gguf", bos)))
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, loading.load_tokenizer(str(tmp_path / "saved"))):
        assert frame(each) == (front, [])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "there is no such file"),
        (lambda whole: b"", "is not a GGUF file"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "is not a GGUF file"),
        (lambda whole: whole[:40], "could not be loaded"),
        (lambda whole: whole[:-5000], "could not be loaded"),
        (lambda whole: whole.replace(b"llama", b"lxxxa"), "could not be loaded"),
        (lambda whole: whole.replace(b"blk.0.ffn_up", b"blk.0.ffn_xx"), "has no weights for"),
    ],
)
def test_a_file_that_is_no_model(file, tmp_path, contents, message):
    path = tmp_path / "broken.gguf"
    if contents is not None:
        path.write_bytes(contents(file.read_bytes()))
    with pytest.raises(UserError, match=rf"^model\.path=.*broken\.gguf: .*{message}"):
        loading.load_policy(str(path))


def test_what_it_needs_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf, "PACKAGES", ("not_there",))
    with pytest.raises(UserError, match=r"needs the package not_there, which is not installed. Run pip install -e '.\[gguf\]'"):
        check_folder(str(file))
