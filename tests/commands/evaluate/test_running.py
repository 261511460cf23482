"""`python -m dash_exp.evaluate` as typed, on the shipped model and on a run of the real program."""

import json

import pytest
from omegaconf import OmegaConf

from dash_exp.models import loading

TINY = str(loading.ASSETS / "tiny")
FEW = ["data.tests.in_dist.size=12", "data.tests.out_dist.size=12", "rollout.max_response_tokens=40"]


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


@pytest.mark.needs("vllm")
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
    digests = {key: value for key, value in result.items() if key.startswith("digest/data.tests.")}
    for checkpoint, when in (("last", "final"), ("base", "base")):
        out = trained / f"{checkpoint}.json"
        done = command(trained, f"checkpoint={checkpoint}", f"out={out}")
        assert done.returncode == 0, done.stderr
        written = json.loads(out.read_text())
        assert {key: value for key, value in written.items() if key.startswith("digest/")} == digests
        tests = written["tests"]
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
    assert "evaluation.json: exists already" in again.stderr


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


def test_help(command):
    done = command("--help")
    assert done.returncode == 0
    assert "RUN_OR_MODEL" in done.stdout
