"""The settings of an evaluation: those of the run, changed by the command line."""

import json
import shutil

import pytest
from conftest import NANO, ROOT, composed
from omegaconf import OmegaConf

from dash_exp.commands.evaluate.command import parse
from dash_exp.commands.evaluate.configuration import configured
from dash_exp.core.errors import UserError
from dash_exp.models import loading

TINY = str(loading.ASSETS / "tiny")


def of(*arguments):
    return configured(parse([str(a) for a in arguments]))


def test_references_of_a_run_follow_its_changes(trained):
    """What refers to a changed value changes with it; without Hydra's record of the references that is refused."""
    record = trained / ".hydra" / "config.yaml"
    record.write_text(
        record.read_text().replace("size: 16", "size: ${data.shared}").replace("data:\n", "data:\n  shared: 16\n", 1)
    )
    cfg = of(trained, "data.shared=8")
    assert (cfg.data.tests.in_dist.size, cfg.data.tests.out_dist.size) == (8, 8)
    record.unlink()
    with pytest.raises(UserError, match=r"data\.tests\.in_dist\.size=8: .*Choose the data set as well: data=arithmetic"):
        of(trained, "data.tests.in_dist.size=8")
    assert of(trained, "data=arithmetic", "data.tests.in_dist.size=8").data.tests.in_dist.size == 8


def test_a_further_test_set_for_a_run(trained):
    cfg = of(trained, "+test@data.tests.long=arithmetic", "data.tests.long.operands=[7,8]")
    assert list(cfg.data.tests) == ["in_dist", "out_dist", "long"]
    assert list(cfg.data.tests.long.operands) == [7, 8]
    assert cfg.data.tests.long.reward == cfg.reward
    other = "reward@data.tests.long.reward=math"
    cfg = of(trained, "+test@data.tests.long=arithmetic", other, "data.tests.long.reward.workers=1", "reward=format")
    assert cfg.data.tests.long.reward.workers == 1
    assert [each._target_.rpartition(".")[2] for each in (cfg.reward, cfg.data.tests.long.reward)] == [
        "FormatReward",
        "MathReward",
    ]
    brought = of(trained, "+reward@data.tests.in_dist.reward=math").data.tests.in_dist
    assert (brought.form, brought.reward._target_) == ("symbols", "dash_exp.rewards.math.MathReward")
    with pytest.raises(UserError, match=r"^algo=grpo: has no effect here"):
        of(trained, "algo=grpo")
    with pytest.raises(UserError, match=r"^eval\.n=8: is a setting for training. Write n=8"):
        of(trained, "eval.n=8")


def test_a_run_whose_job_had_nodes_of_servers_is_evaluated_without_them(trained):
    """The servers that it asks are those of `rollout.sampler.servers`."""
    record = trained / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(record)
    cfg.rollout = composed("rollout=vllm_server", "rollout.sampler.server_nodes=1", "rollout.sampler.gpus_per_server=4").rollout
    OmegaConf.save(cfg, record)
    assert of(trained).rollout.sampler.server_nodes == 0
    with pytest.raises(UserError, match=r"of a cell's own Slurm job, and this is an evaluation\. Leave it out, and start"):
        of(trained, "rollout.sampler.server_nodes=1")


def test_a_cell_of_a_sweep(trained):
    """Its folder is named by its overrides."""
    cell = trained.rename(trained.with_name("algo=dash,kl.coef=0.04"))
    assert of(cell, "n=2", "~data.tests.out_dist").model.path == str(cell / "checkpoints" / "last")


def test_a_tokenizer_of_ones_own(trained):
    assert of(trained).model.tokenizer == str(trained / "checkpoints" / "last")
    assert of(trained, f"model.tokenizer={TINY}").model.tokenizer == TINY
    assert of(TINY).model.tokenizer == TINY


def test_how_a_model_is_asked(trained):
    """A run's as in training; whether another model is an instruct model is found out, whatever the file in conf/model says."""
    assert of(trained).model.instruct is False
    assert of(trained, "prompt=think").prompt.prefill == "<think>"
    assert of(TINY).model.instruct == "auto"
    assert of(TINY, "model.instruct=true").model.instruct is True
    for file in (trained / "config.yaml", trained / ".hydra" / "config.yaml"):  # of a version without prompts
        cfg = OmegaConf.load(file)
        del cfg["prompt"], cfg.model["instruct"]
        OmegaConf.save(cfg, file)
    assert of(trained).prompt.chat is False
    assert of(trained, "prompt.system=Add").prompt.system == "Add"


@pytest.mark.parametrize("rollout", ["vllm", "vllm_server"])
def test_a_run_that_another_engine_sampled(tmp_path, rollout, monkeypatch):
    """With its settings of the engine, and today's for those that it does not have."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # vLLM is there
    was = composed(f"rollout={rollout}", "rollout.sampler.max_sequences=9", "~rollout.memory_gb")
    OmegaConf.save(was, tmp_path / "config.yaml", resolve=True)
    shutil.copytree(TINY, tmp_path / "checkpoints" / "last")
    now = of(tmp_path).rollout
    assert now.sampler == OmegaConf.load(tmp_path / "config.yaml").rollout.sampler
    assert now.memory_gb == 16


def test_without_a_base_that_was_kept(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"architecture": NANO}}))
    with pytest.raises(UserError, match="started from random weights"):
        of(tmp_path, "checkpoint=base")


def test_a_run_without_that_checkpoint(trained):
    shutil.rmtree(trained / "checkpoints" / "best")
    with pytest.raises(UserError, match=r"has no checkpoint best \(there: last\)\. Use checkpoint=last"):
        of(trained, "checkpoint=best")
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint last \(there: none\)"):
        of(trained)


def test_several_values(trained):
    with pytest.raises(UserError, match="has several values"):
        of(trained, "seed=0,1")


MISTAKES = [
    ([TINY, "limit=0"], "eval.limit=0"),
    ([TINY, "checkpoint=last"], "is not a run folder"),
    ([TINY, "model.path=elsewhere"], "model.path=elsewhere: the model to evaluate is"),
    ([str(ROOT)], "neither a run folder .* nor a Transformers folder"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(a).replace(TINY, "TINY") for a, _ in MISTAKES])
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        of(*arguments)
