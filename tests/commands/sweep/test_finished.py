"""A folder that already holds a run: this one, or another."""

import json

import pytest
from conftest import composed
from omegaconf import OmegaConf

from dash_exp.commands.sweep.finished import finished
from dash_exp.core.errors import UserError


def test_a_finished_cell_is_known_by_its_settings(tmp_path):
    cfg = composed()
    assert not finished(tmp_path, cfg)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed"}))
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text('{"status": "do')
    assert not finished(tmp_path, cfg)
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    assert finished(tmp_path, cfg)
    with pytest.raises(UserError, match="holds a finished run with other settings"):
        finished(tmp_path, composed("seed=1"))


def test_what_a_study_asks_is_no_other_setting(tmp_path):
    """Neither is a configuration of before a key of it existed."""
    cfg = composed(
        "study.claims=[{arm:['algo=dash'],against:['algo=grpo'],kind:faster}]", "study.question=why", "study.target=0.9"
    )
    earlier = composed()
    OmegaConf.set_struct(earlier, False)
    del earlier.study["claims"], earlier.study["smollm2"]
    for was in (composed(), earlier):
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(was, resolve=True))
        (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
        assert finished(tmp_path, cfg)


def test_where_a_matched_budget_ended_is_no_other_setting(tmp_path):
    """A second DASH run takes other seconds; the PPO arm that was matched with the first is done all the same."""
    matched = composed("budget.match=seconds", "study.baseline=['algo=dash']", "budget.seconds=12.5")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(matched, resolve=True))
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    assert finished(tmp_path, composed("budget.match=seconds", "study.baseline=['algo=dash']"))
    with pytest.raises(UserError, match="other settings"):
        finished(tmp_path, composed("study.baseline=['algo=dash']", "budget.seconds=12.5"))
