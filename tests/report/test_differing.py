"""Settings that differ between arms, and what explains them."""

import json
import shutil

import pytest
from conftest import composed
from omegaconf import OmegaConf
from reports import document_of, rows, texts, warnings_of
from synthetic import write_cell

from dash_exp.commands import cli
from dash_exp.report import differing, warnings
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_swept_settings_do_not_warn(sweep):
    differs = differing.settings(load([sweep]))
    assert differs["filter.threshold"] == {"grpo": "-", "dash": "0.1"}
    assert "batch.sample_prompts" in differs
    assert warnings_of(sweep) == ""
    assert "filter.threshold" in rows(document_of(sweep), "settings")


def test_a_line_break_in_a_value_does_not_end_the_row_of_a_table(tmp_path):
    for name, separator in (("a", None), ("b", "\n")):
        data = OmegaConf.to_container(composed().data, resolve=True) | {"separator": separator}
        write_cell(tmp_path / name, [f"data.separator={name}", "seed=0"], settings={"data": data})
    differs = differing.settings(load([tmp_path]))["data.separator"]
    assert list(differs.values()) == ["null", "'\\n'"]


def test_anything_else_that_differs_warns(sweep):
    for seed in range(3):
        shutil.rmtree(sweep / f"algo=dash,seed={seed}")
        write_cell(sweep / f"algo=dash,seed={seed}", ["algo=dash", f"seed={seed}"], settings={"clip_norm": 5.0})
    said = warnings_of(sweep)
    assert "clip_norm differs between cells but was not swept (" in said
    assert "5.0 in dash" in said and "1.0 in grpo" in said
    assert said.count("was not swept") == 1
    document = document_of(sweep)
    assert "clip_norm" in texts(document, "summary") and "clip_norm" in texts(document, "settings")


def test_a_setting_that_differs_between_seeds_warns(tmp_path):
    for seed in range(2):
        write_cell(tmp_path / str(seed), ["algo=dash", f"seed={seed}"], settings={"clip_norm": 1.0 + seed})
    assert "clip_norm differs between cells but was not swept (1.0 | 2.0 in dash)" in warnings_of(tmp_path)


def test_matched_budgets_do_not_warn(tmp_path):
    for algo, limit in (("grpo", None), ("dash", 7)):
        budget = {"seconds": limit, "sampled_tokens": None, "optimizer_steps": None, "match": "seconds"}
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], settings={"budget": budget})
    assert "budget" not in warnings_of(tmp_path)


def test_what_cannot_be_composed_is_said(tmp_path):
    for algo in ("grpo", "mine"):
        write_cell(tmp_path / algo, ["algo=grpo", "seed=0"], settings={"clip_norm": 1.0 + (algo == "mine")})
    (tmp_path / "mine" / ".hydra" / "overrides.yaml").write_text("[algo=mine, seed=0]")
    said = warnings_of(tmp_path)
    assert "could not be checked which settings these overrides change: algo=mine" in said
    assert "clip_norm" in said


def test_composing_leaves_a_running_hydra_alone(sweep):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(cli.conf_folder()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert warnings_of(sweep) == ""
        assert GlobalHydra.instance().hydra is before
    assert composed("algo=grpo").algo.name == "grpo"


def test_arms_that_are_named_by_a_number_of_kl_are_explained(tmp_path):
    """`kl='0.04',linear`: the quotes are gone, and Hydra alone would refuse the number."""
    for kl, overrides in (("0.04", ["kl=0.04"]), ("linear", ["kl=linear"])):
        write_cell(tmp_path / kl, ["kl.coef=0.04"] if kl == "0.04" else overrides)
        (tmp_path / kl / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    assert differing.explained(load([tmp_path]))[1] == []
    assert not warnings.unexplained(load([tmp_path]))


def test_what_refers_to_a_setting_of_the_sweep_file_is_explained(tmp_path):
    """As reward.weights in sweeps/rewards.yaml, where arms are values of own.by."""
    for by, weights in (("right", {"a": 1, "b": 0}), ("form", {"a": 1, "b": 0.5})):
        reward = {"weights": weights, "limit": weights["b"]}
        write_cell(tmp_path / by, [f"own.by={by}", "seed=0"], settings={"reward": reward})
        composed_as = {"reward": {"weights": "${own.weights.${own.by}}", "limit": 1}}
        (tmp_path / by / ".hydra" / "config.yaml").write_text(json.dumps(composed_as))
    said = warnings.unexplained(load([tmp_path]))
    assert [warning.split(" between")[0] for warning in said] == ["reward.limit differs"]
