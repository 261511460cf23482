"""What `benchmarks/peers.py` gives its runs and makes of finished ones. TRL itself is not run here."""

import argparse
import csv
import json
import math
import subprocess
import sys

import coin
import peers
import peers_table
import pytest
from conftest import CONF, ROOT, environment

from dash_exp.commands import cli
from dash_exp.core.types import Problem
from dash_exp.settings.overrides import number_of_kl


def finished(folder, accuracies, seconds, peak_mb=100.0):
    """A run of one row a step, evaluated where there is an accuracy; step 0 is the evaluation of the base model."""
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, peers_table.COLUMNS, restval="")
        writer.writeheader()
        for step, accuracy in enumerate(accuracies):
            phases = {"time/sample_s": seconds / 2, "time/score_s": 0.0, "time/update_s": seconds / 4} if step else {}
            tokens = {"tokens/sampled": 10, "tokens/trained": 20} if step else {}
            evaluated = {} if accuracy is None else {peers_table.SAMPLED: accuracy, peers_table.GREEDY: accuracy}
            writer.writerow({"step": step, "time/elapsed_s": step * seconds, **phases, **tokens, **evaluated})
    (folder / "peak.json").write_text(json.dumps({"command": ["train.py"], "peak_rss_mb": peak_mb}))


OPTIONS = argparse.Namespace(arms=["dash", "trl"], seeds=2, target=0.7, only_time=False)
COMPUTED = {"dash": "bfloat16", "trl": "float32, eager"}


def test_a_run_is_as_fast_as_its_first_evaluation_at_the_target(tmp_path):
    finished(tmp_path / "run", [0.9, None, 0.5, None, 0.7, None, 0.6], seconds=2.0)
    run = peers_table.summary(tmp_path / "run", OPTIONS, parameters=5)
    assert (run["steps_to_target"], run["seconds_to_target"], run["final_accuracy"]) == (4, 8.0, 0.6)
    assert (run["seconds_per_step"], run["sample_s_per_step"], run["update_s_per_step"]) == (2.0, 1.0, 0.5)
    # 2 s and 10 sampled tokens a step: 1 s to sample, 0.5 s to update
    assert [run[f"{phase}_ms_per_token"] for phase in ("sample", "update", "step")] == [100.0, 50.0, 150.0]
    assert (run["sampled_tokens_per_s"], run["trained_tokens_per_s"], run["peak_rss_mb"]) == (10.0, 40.0, 100.0)
    assert math.isinf(
        peers_table.summary(tmp_path / "run", argparse.Namespace(target=0.8, only_time=False), parameters=5)[
            "seconds_to_target"
        ]
    )


def test_ratios_are_taken_seed_by_seed(tmp_path, capsys):
    for seed, (ours, theirs) in enumerate([(1.0, 4.0), (2.0, 4.0), (9.0, 10.0)]):
        finished(tmp_path / "dash" / str(seed), [None, 0.8], ours)
        finished(tmp_path / "trl" / str(seed), [None, 0.6, 0.8], theirs, peak_mb=200.0)
    peers_table.report(tmp_path, argparse.Namespace(**vars(OPTIONS) | {"seeds": 3}), parameters=5, computed=COMPUTED)
    with (tmp_path / "ratios.csv").open() as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    time = rows["seconds_to_target"]  # 1/8, 2/8 and 9/20
    assert [float(time[k]) for k in ("median", "lowest", "highest")] == [0.25, 0.125, 0.45]
    assert float(rows["peak_rss_mb"]["median"]) == 0.5
    assert float(rows["step_ms_per_token"]["median"]) == 0.5  # 1 / 4, 2 / 4 and 9 / 10: both sample as many tokens
    said = capsys.readouterr().out
    assert "dash         / trl" in said and "bfloat16" in said
    with (tmp_path / "runs.csv").open() as file:
        assert {row["arm"]: row["computed_in"] for row in csv.DictReader(file)} == COMPUTED
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_target_that_a_seed_does_not_reach_gives_no_ratio(tmp_path, capsys):
    for seed, accuracy in enumerate((0.8, 0.6)):
        finished(tmp_path / "dash" / str(seed), [None, 0.8], 1.0)
        finished(tmp_path / "trl" / str(seed), [None, accuracy], 2.0)
    peers_table.report(tmp_path, OPTIONS, parameters=5, computed=COMPUTED)
    assert "seconds_to_target    not reached by every seed" in capsys.readouterr().out


def test_only_time_leaves_the_first_step_out(tmp_path):
    finished(tmp_path / "run", [None, None, None], seconds=2.0)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        slow = file.read().replace("1,2.0,", "1,12.0,").replace("2,4.0,", "2,14.0,")
    (tmp_path / "run" / "metrics.csv").write_text(slow)
    run = peers_table.summary(tmp_path / "run", argparse.Namespace(only_time=True), parameters=5)
    assert (run["seconds_per_step"], run["trained_tokens_per_s"]) == (2.0, 40.0)
    assert run["trained_tflops"] == pytest.approx(6 * 5 * 40.0 / 1e12)
    assert "final_accuracy" not in run


def test_the_coin_has_a_chance_for_each_problem():
    problems = [Problem(str(i), "", "") for i in range(300) for _ in range(40)]
    rewards = coin.Coin()(problems, [f"text {i}" for i in range(len(problems))]).rewards
    chances = [sum(rewards[i : i + 40]) / 40 for i in range(0, len(rewards), 40)]
    assert sum(chances) / len(chances) == pytest.approx(0.5, abs=0.06)
    assert sum(c < 0.25 for c in chances) > 50 < sum(c > 0.75 for c in chances)


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    assert not peers.done(tmp_path / "run", ["train.py"])
    finished(tmp_path / "run", [None, 0.8], 1.0)
    assert peers.done(tmp_path / "run", ["train.py"])
    with pytest.raises(SystemExit, match="other settings"):
        peers.done(tmp_path / "run", ["train.py", "steps=3"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arms=dahs"], "unknown: dahs"),
        (["steps"], "KEY=VALUE"),
        (["--dtypes=int8"], "unknown: int8"),
        (["--trl-attention=fast"], "unknown: fast"),
        (["--only-time", "--steps=1"], "at least 2"),
    ],
)
def test_wrong_arguments(arguments, said, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), f"--out={tmp_path}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert ended.returncode != 0 and said in ended.stderr
    assert not list(tmp_path.iterdir())


OF_DATA = {"reasoning_gym": ["data.task=gcd"], "math500": ["data.train=null"]}


@pytest.mark.parametrize("data", sorted(file.stem for file in (CONF / "data").glob("*.yaml")))
def test_only_time_has_rewards_by_chance_on_any_data(data):
    options = argparse.Namespace(only_time=True, steps=2)
    given = [f"data={data}", *OF_DATA.get(data, [])]
    if data in ("hub", "jsonl", "verl"):
        given += ["data.path=somewhere"]
    cfg = cli.composed(number_of_kl(peers.complete(options, given)))
    assert dict(cfg.reward) == {"_target_": "coin.Coin"}
    assert (cfg.steps, cfg.kl.coef, cfg.data.tests.out_dist) == (2, 0, None)


@pytest.mark.parametrize(("given", "lr"), [([], 3e-4), (["model=smollm2-135m"], 2e-5), (["model.lr=1e-4"], 1e-4)])
def test_another_model_has_its_own_learning_rate(given, lr):
    options = argparse.Namespace(only_time=False, steps=4)
    cfg = cli.composed(number_of_kl(peers.complete(options, given)))
    assert (cfg.optimizer.lr, cfg.reward._target_.endswith("ExactReward"), cfg.eval.n) == (lr, True, 2)


@pytest.mark.parametrize(
    ("arm", "dtypes", "attention", "chosen", "tried"),
    [
        ("trl", [], [], "", []),
        ("trl", ["bfloat16"], [], "bfloat16", []),
        ("dash", ["float32", "bfloat16"], ["sdpa", "eager"], "bfloat16", ["float32", "bfloat16"]),
        (
            "trl_coupled",
            ["float32", "bfloat16"],
            ["sdpa", "eager"],
            "bfloat16 eager",
            ["float32 sdpa", "float32 eager", "bfloat16 sdpa", "bfloat16 eager"],
        ),
    ],
)
def test_each_arm_computes_in_its_fastest_way(arm, dtypes, attention, chosen, tried, tmp_path, monkeypatch, capsys):
    seen = []

    def run(arm, seed, folder, options, settings):
        way = " ".join(setting.partition("=")[2] for setting in settings if setting.startswith("model."))
        seen.append(way)
        assert "steps=2" in settings
        finished(folder, [None, None, None], seconds=4.0 - ("bfloat16" in way) - ("eager" in way))

    monkeypatch.setattr(peers, "finished", run)
    options = argparse.Namespace(dtypes=dtypes, trl_attention=attention)
    way = peers.fastest(arm, tmp_path, options, ["kl=0", "steps=9"])
    assert " ".join(setting.partition("=")[2] for setting in way) == chosen
    assert seen == tried
    assert (f"{arm}: float32" in capsys.readouterr().out) == bool(tried)
