"""Runs of earlier versions, whose configuration names parts that have moved: evaluated, reported and resumed.

`earlier_run/` is what a run of one step wrote in the last version with the old names. ASSETS stands for the folder of assets.
"""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import composed, program
from omegaconf import OmegaConf

from dash_exp.commands.hydra_setup import run_folder
from dash_exp.commands.sweep.finished import finished
from dash_exp.models import loading
from dash_exp.results import cells
from dash_exp.results.run_folder import SNAPSHOTS, as_earlier, flat
from dash_exp.settings import renamed
from dash_exp.training import snapshot_search

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def earlier(tmp_path):
    """A copy of the run in the folder of a sweep, with the shipped model as its checkpoint."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "sweep" / "earlier"))
    for file in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        file.write_text(file.read_text().replace("ASSETS", str(loading.ASSETS)))
    shutil.copytree(loading.ASSETS / "tiny", folder / "checkpoints" / "last")
    return folder


def parts(config) -> dict[str, str]:
    return {key: value for key, value in flat(config) if key.endswith("_target_")}


def test_its_configuration_has_the_old_names():
    old = set(re.findall(r"dash_exp\.[\w.]+", (EARLIER / "config.yaml").read_text()))
    assert len(old) == 9
    assert old <= set(renamed.NAMES)


def test_its_parts_are_those_of_the_same_command_today(earlier):
    cell = cells.load_cell(earlier)
    today = composed(*(f"{key}={value}" for key, value in cell.overrides.items()))
    assert cell.overrides["algo.denominator._target_"] == "dash_exp.algorithms.weighting.per_kept"
    assert parts(cell.config) == parts(as_earlier(OmegaConf.to_container(today, resolve=True)))


def test_it_is_evaluated(earlier, tmp_path):
    done = program(tmp_path, "dash_exp.evaluate", str(earlier))
    assert done.returncode == 0, done.stderr
    tests = json.loads((earlier / "evaluation.json").read_text())["tests"]
    before = json.loads((earlier / "result.json").read_text())
    for name in ("in_dist", "out_dist"):  # the checkpoint is the model that it started from
        assert tests[name]["accuracy"] == before[f"accuracy/{name}/base"]


def test_without_hydras_record_it_is_evaluated_as_well(earlier, tmp_path):
    shutil.rmtree(earlier / ".hydra")
    done = program(tmp_path, "dash_exp.evaluate", str(earlier), "limit=1")
    assert done.returncode == 0, done.stderr


def test_the_report_compares_it_with_a_run_of_today(earlier, tmp_path):
    """The two have the same parts, so that no difference is reported."""
    today = Path(shutil.copytree(earlier, earlier.parent / "today"))
    for file in ("config.yaml", ".hydra/overrides.yaml"):
        (today / file).write_text(renamed.in_text((today / file).read_text()))
    done = program(tmp_path, "dash_exp.report", str(earlier.parent))
    assert done.returncode == 0, done.stderr
    text = (earlier.parent / "report" / "report.md").read_text()
    assert "_target_" not in text
    assert "was not swept" not in text


def test_it_is_found_and_compared_where_it_is_resumed(tmp_path):
    """A run of today, with the names translated back."""
    cfg = composed("name=small", "reward=code", "algo.denominator._target_=dash_exp.algorithms.weighting.per_kept")
    stored = OmegaConf.to_container(cfg, resolve=True)
    del stored["prompt"], stored["model"]["instruct"], stored["select"], stored["data"]["limit"]
    stored["reward"]["workers"] = 2  # the default then
    text = OmegaConf.to_yaml(stored)
    for old, new in renamed.NAMES.items():
        text = re.sub(rf"{re.escape(new)}(?![\w.])", old, text)
    assert renamed.in_text(text) != text
    stopped = tmp_path / "stopped"
    snapshot = stopped / "checkpoints" / "resume" / f"step_00001-{'0' * 16}.pt"
    snapshot.parent.mkdir(parents=True)
    snapshot.touch()
    (stopped / "config.yaml").write_text(text)
    assert run_folder(str(tmp_path), "new", _root_=cfg) == str(stopped)
    assert not finished(stopped, cfg)  # which raises where a stopped run has other settings
    cfg.model.instruct = True  # which is asked in another way than that run did
    assert run_folder(str(tmp_path), "new", _root_=cfg) == f"{tmp_path}/new"
    cfg.model.instruct = False
    (stopped / "result.json").write_text('{"status": "done"}')
    assert finished(stopped, cfg)


def test_its_snapshot_is_of_the_same_settings(tmp_path):
    """The settings in a snapshot are a text, which is compared with that of the command."""
    reward = {"_target_": "dash_exp.rewards.code.CodeReward", "memory_mb": 512}
    today = json.dumps({"loss": {"_target_": "dash_exp.algorithms.losses.ppo_clip"}, "reward": reward})
    contents = io.BytesIO()
    earlier = json.loads(today.replace("algorithms.losses", "algo")) | {
        "reward": {"_target_": "dash_exp.reward.CodeReward", "workers": 2, "memory_mb": 512}
    }
    state = {"config": json.dumps(earlier), "module": dict.fromkeys(snapshot_search.MODULE), "random": []}
    torch.save(state, contents)
    file = tmp_path / SNAPSHOTS / f"step_00001-{hashlib.sha256(contents.getvalue()).hexdigest()[:16]}.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(contents.getvalue())
    assert snapshot_search.found(tmp_path, today, {}) == (state, None)
    assert snapshot_search.found(tmp_path, "{}", {}) == (None, None)
