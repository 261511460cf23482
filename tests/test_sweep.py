import json

import pytest
from conftest import composed
from omegaconf import OmegaConf

from dash_exp.errors import UserError
from dash_exp.sweep import cell_name, finished


def test_cell_names_are_folder_names():
    assert cell_name("algo=dash,kl.coef=0") == "algo=dash,kl.coef=0"
    assert cell_name("data.path=../x/y") == "data.path=.._x_y"
    assert cell_name("") == "cell"
    first, second = cell_name("a" * 300), cell_name("a" * 299 + "b")
    assert len(first) <= 150
    assert first != second


def test_a_finished_cell_is_known_by_its_settings(tmp_path, capsys):
    cfg = composed()
    assert not finished(tmp_path, cfg)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed"}))
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text('{"status": "do')
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    assert finished(tmp_path, cfg)
    assert "skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a finished run with other settings"):
        finished(tmp_path, composed("seed=1"))
