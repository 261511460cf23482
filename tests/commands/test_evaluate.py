"""`python -m dash_exp.evaluate` as typed, on the shipped model and on a run that the real program made."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import NANO, ROOT, SMALL, TRAIN, needs_vllm, program
from omegaconf import OmegaConf

from dash_exp.commands import evaluate
from dash_exp.core.errors import UserError
from dash_exp.models import loading

TINY = str(loading.ASSETS / "tiny")
FEW = ["data.tests.in_dist.size=12", "data.tests.out_dist.size=12", "rollout.max_response_tokens=40"]


@pytest.fixture
def command(tmp_path):
    """`python -m dash_exp.evaluate ...` in a folder of the test's own."""

    def start(*arguments, **how):
        return program(tmp_path, "dash_exp.evaluate", *map(str, arguments), **how)

    return start


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a short run of the real program."""
    folder = tmp_path_factory.mktemp("made")
    program(folder, TRAIN, *SMALL, "hydra.run.dir=run").check_returncode()
    return folder / "run"


@pytest.fixture
def trained(made, tmp_path):
    """A copy of it for one test."""
    return Path(shutil.copytree(made, tmp_path / "trained"))


def greedy_accuracy(folder):
    tests = json.loads((folder / "evaluation.json").read_text())["tests"]
    return {name: found["accuracy"] for name, found in tests.items()}


def test_a_run_of_before_the_settings_of_samplers(command, trained):
    """Their folders lack what was added to `rollout` since."""
    for file in (trained / "config.yaml", trained / ".hydra" / "config.yaml"):
        cfg = OmegaConf.load(file)
        for key in ("staleness", "refresh_every", "importance_cap", "mismatch_limit"):
            del cfg.rollout[key]
        OmegaConf.save(cfg, file)
    done = command(trained)
    assert done.returncode == 0, done.stderr
    result = json.loads((trained / "result.json").read_text())
    assert greedy_accuracy(trained) == {name: result[f"accuracy/{name}/final"] for name in ("in_dist", "out_dist")}


@needs_vllm
def test_a_run_by_another_sampler(command, trained):
    done = command(trained, "rollout=vllm", "rollout.max_response_tokens=40")
    assert done.returncode == 0, done.stderr
    result = json.loads((trained / "result.json").read_text())
    assert greedy_accuracy(trained) == {name: result[f"accuracy/{name}/final"] for name in ("in_dist", "out_dist")}


def test_a_model_on_several_test_sets(command, tmp_path):
    done = command(TINY, "k=[1,2,4]", *FEW, is_forked=False)
    assert done.returncode == 0, done.stderr
    assert "in_dist, 12 problem(s)" in done.stdout
    assert "pass@4" in done.stdout
    result = json.loads((tmp_path / "evaluation.json").read_text())
    settings = result["settings"]
    assert {k: settings[k] for k in ("n", "k", "temperature", "top_p", "seed", "model")} == {
        "n": 4,
        "k": [1, 2, 4],
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 0,
        "model": TINY,
    }
    rows = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert (tmp_path / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["tests"]) == {"in_dist", "out_dist"}
    for name, found in result["tests"].items():
        own = [r for r in rows if r["test"] == name]
        assert found["problems"] == len(own) == 12
        right = [r["greedy"]["texts"][0].rpartition("A:")[2].split(" ")[0] == r["answer"] for r in own]
        assert found["accuracy"] == pytest.approx(sum(right) / 12)
        assert 0 < found["accuracy"] < 1
        each = [sum(a == r["answer"] for a in r["sampled"]["answers"]) for r in own]
        assert found["avg@4"] == pytest.approx(sum(each) / 48)
        assert found["pass@4"] == pytest.approx(sum(c > 0 for c in each) / 12)
        assert found["maj@4"] == pytest.approx(sum(r["majority"] for r in own) / 12)
        assert found["pass@1/low"] < found["pass@1"] < found["pass@1/high"]


def test_a_run_is_measured_as_it_measured_itself(command, trained):
    result = json.loads((trained / "result.json").read_text())
    for checkpoint, when in (("last", "final"), ("base", "base")):
        out = trained / f"{checkpoint}.json"
        done = command(trained, f"checkpoint={checkpoint}", f"out={out}")
        assert done.returncode == 0, done.stderr
        tests = json.loads(out.read_text())["tests"]
        for name in ("in_dist", "out_dist"):
            assert tests[name]["accuracy"] == pytest.approx(result[f"accuracy/{name}/{when}"])
            assert tests[name]["problems"] == 16
            assert "pass@1" not in tests[name]


def test_settings_of_a_run_can_be_changed(command, trained, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text('{"prompt": "4*9*0=", "answer": "0"}\n{"prompt": "1+1=", "answer": "2"}\n')
    done = command(trained, "data=jsonl", f"data.path={data}", "reward=exact", "n=2", "limit=1", "seed=3", "checkpoint=best")
    assert done.returncode == 0, done.stderr
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["settings"]["data"]["tests"]["in_dist"]["path"] == str(data)
    assert result["settings"]["max_response_tokens"] == 40  # the run's own
    assert result["settings"]["model"].endswith("checkpoints/best")
    assert result["settings"]["seed"] == 3
    assert result["tests"]["in_dist"]["problems"] == 1
    assert result["tests"]["in_dist"]["accuracy"] == 1  # a chain that the base model already works out
    assert result["tests"]["in_dist"]["avg@2/low"] is None  # one problem has no interval
    again = command(trained)
    assert again.returncode == 1
    assert "evaluation.json: is there already" in again.stderr


def configured(*arguments):
    return evaluate.configuration(evaluate.parse([str(a) for a in arguments]))


def test_references_of_a_run_follow_its_changes(trained):
    """What refers to a changed value changes with it; without Hydra's record of the references that is refused."""
    record = trained / ".hydra" / "config.yaml"
    record.write_text(
        record.read_text().replace("size: 16", "size: ${data.shared}").replace("data:\n", "data:\n  shared: 16\n", 1)
    )
    cfg = configured(trained, "data.shared=8")
    assert (cfg.data.tests.in_dist.size, cfg.data.tests.out_dist.size) == (8, 8)
    record.unlink()
    with pytest.raises(UserError, match=r"data\.tests\.in_dist\.size=8: .*Choose the data set as well: data=arithmetic"):
        configured(trained, "data.tests.in_dist.size=8")
    assert configured(trained, "data=arithmetic", "data.tests.in_dist.size=8").data.tests.in_dist.size == 8


def test_a_further_test_set_for_a_run(trained):
    cfg = configured(trained, "+test@data.tests.long=arithmetic", "data.tests.long.operands=[7,8]")
    assert list(cfg.data.tests) == ["in_dist", "out_dist", "long"]
    assert list(cfg.data.tests.long.operands) == [7, 8]
    with pytest.raises(UserError, match=r"^algo=grpo: has no part in evaluation"):
        configured(trained, "algo=grpo")
    with pytest.raises(UserError, match=r"^eval\.n=8: is a setting of training. Write n=8"):
        configured(trained, "eval.n=8")


def test_a_cell_of_a_sweep(trained):
    """Its folder is named by its overrides."""
    cell = trained.rename(trained.with_name("algo=dash,kl.coef=0.04"))
    assert configured(cell, "n=2", "~data.tests.out_dist").model.path == str(cell / "checkpoints" / "last")


def test_a_tokenizer_of_ones_own(trained):
    assert configured(trained).model.tokenizer == str(trained / "checkpoints" / "last")
    assert configured(trained, f"model.tokenizer={TINY}").model.tokenizer == TINY
    assert configured(TINY).model.tokenizer == TINY


def test_without_a_base_that_was_kept(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"architecture": NANO}}))
    with pytest.raises(UserError, match="started from random weights"):
        configured(tmp_path, "checkpoint=base")


MISTAKES = [
    ([TINY, "k=8", "n=4"], "k=8: is more than n=4"),
    ([TINY, "k=0"], "k=0: is not a whole number of at least 1"),
    ([TINY, "k=[1,x]"], "k=x"),
    ([TINY, "n=-1"], "n=-1: is not a whole number of at least 0"),
    ([TINY, "n=2", "temperature=0"], "temperature=0: is not a number above 0"),
    ([TINY, "n=2", "top_p=1.5"], "top_p=1.5: is not a number above 0 and at most 1"),
    ([TINY, "limit=0"], "eval.limit=0"),
    ([TINY, "checkpoint=last"], "is no run folder"),
    ([TINY, "checkpoint=newest"], "last, best, base"),
    ([TINY, "model.path=elsewhere"], "model.path=elsewhere: .* is what is evaluated"),
    ([TINY, "--fast"], "--fast: is not of the form name=value"),
    ([TINY, TINY], "is not of the form name=value"),
    (["--fast", TINY], "--fast: is no run folder"),
    (["k=1"], "k=1: is no run folder"),
    ([str(ROOT)], "no run folder .* no Transformers folder"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(a).replace(TINY, "TINY") for a, _ in MISTAKES])
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        configured(*arguments)


END = [
    ([TINY, "k=8", "n=4"], "k=8: is more than n=4"),
    (["./nowhere"], "./nowhere: there is no such folder"),
    ([TINY, "data=nothing"], "data/nothing"),
    ([TINY, "data=gsm8k", "data.path=./nowhere"], "data.path=./nowhere"),
    ([TINY, "rollout.max_responze_tokens=3"], "Did you mean rollout.max_response_tokens?"),
    ([TINY, "rollout.max_response_tokens=5000", "limit=2"], "Lower rollout.max_response_tokens"),
    ([TINY, "out=results.txt"], "out=results.txt"),
]


@pytest.mark.parametrize(("arguments", "says"), END, ids=[" ".join(a).replace(TINY, "TINY") for a, _ in END])
def test_mistakes_end_with_one_message(command, tmp_path, arguments, says):
    done = command(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_settings_of_a_run_are_named(command, trained):
    done = command(trained, "rollout.max_responze_tokens=3")
    assert done.returncode == 1
    assert "Did you mean rollout.max_response_tokens?" in done.stderr
    with pytest.raises(UserError, match="has several values"):
        configured(trained, "seed=0,1")


def test_a_run_without_that_checkpoint(trained):
    shutil.rmtree(trained / "checkpoints" / "best")
    with pytest.raises(UserError, match=r"has no checkpoint best \(there: last\)\. Use checkpoint=last"):
        configured(trained, "checkpoint=best")
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint last \(there: none\)"):
        configured(trained)


def test_help(command):
    done = command("--help")
    assert done.returncode == 0
    assert "RUN_OR_MODEL" in done.stdout
