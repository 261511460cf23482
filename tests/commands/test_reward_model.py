"""`python -m dash_exp.reward_model` as typed, on the shipped model, and what it wrote as the reward of a run."""

import csv
import json

import pytest
from conftest import SMALL, TRAIN, program

from dash_exp.commands.reward_model import Command, make_folder, parse
from dash_exp.core.errors import UserError
from dash_exp.models import loading

TINY = str(loading.ASSETS / "tiny")


def test_what_is_for_the_command_and_what_for_the_configuration(tmp_path):
    command = parse(["x", "out=judge", "problems=20", "n=2", "epochs=3", "lr=1e-4", "data=gsm8k", "~data.limit", "seed=3"])
    assert command == Command("x", command.out, 20, 2, 3, 1e-4, ["data=gsm8k", "~data.limit", "seed=3"])
    assert command.out.name == "judge"
    assert parse(["x", "out=judge"]).lr is None


MISTAKES = [
    (["x"], "out: is missing. Write out=FOLDER"),
    (["x", "out="], "out: is missing"),
    (["out=y"], "out=y: is neither a run folder nor a model"),
    (["x", "--fast"], "--fast: is not of the form name=value"),
    (["x", "out=y", "problems=9"], "problems=9: is not a whole number of at least 10"),
    (["x", "out=y", "n=0"], "n=0: is not a whole number of at least 1"),
    (["x", "out=y", "n=²"], "n=²: is not a whole number"),
    (["x", "out=y", "epochs=1.5"], "epochs=1.5: is not a whole number"),
    (["x", "out=y", "lr=0"], "lr=0: is not a number above 0"),
    (["x", "out=y", "lr=fast"], "lr=fast: is not a number above 0"),
    (["x", "out=y", "lr=inf"], "lr=inf: is not a number above 0"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=f"^{says}"):
        parse(arguments)


def test_a_folder_that_has_files_and_one_that_cannot_be(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")  # empty, as a command that failed leaves it
    with pytest.raises(UserError, match=r"a: exists already and is not empty\. Remove it"):
        make_folder(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written: .+\. Write out=OTHER"):
        make_folder(tmp_path / "file")


def command(folder, *arguments):
    return program(folder, "dash_exp.reward_model", *arguments)


def test_a_reward_model_is_trained_and_used(tmp_path):
    done = command(tmp_path, TINY, "out=judge", "problems=60", "n=4", "epochs=2")
    assert done.returncode == 0, done.stderr
    assert "the first prompt" in done.stdout
    assert "completions 240 of 240" in done.stdout
    assert done.stdout.splitlines()[-1] == "reward model: reward=reward_model reward.path=judge"
    result = json.loads((tmp_path / "judge" / "reward_model.json").read_text())
    assert result["kept"] == 48
    assert 0 < 2 * result["right"] == result["completions"] < 192
    losses = [epoch["loss"] for epoch in result["epochs"]]
    assert losses[1] < losses[0]
    assert all(0 <= epoch[name] <= 1 for epoch in result["epochs"] for name in ("accuracy", "auc"))

    again = command(tmp_path, TINY, "out=judge")
    assert again.returncode == 1
    assert "out=judge: exists already and is not empty" in again.stderr

    run = [*SMALL, "reward=arithmetic_parts", "reward.weights={right:0,partial:0,format:0,length:0,judge:1}"]
    used = program(tmp_path, TRAIN, *run, "reward.parts.judge.path=judge", "hydra.run.dir=run")
    assert used.returncode == 0, used.stderr
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reward/judge"]]
    for row in rows:
        assert float(row["reward/mean"]) == pytest.approx(float(row["reward/judge"]))
        assert row["reward/mean"] != row["reward/right"]
    assert len(rows) > 1
    assert {"reward/partial", "reward/format", "reward/length"} <= set(rows[0])


def test_nothing_to_tell_apart(tmp_path):
    done = command(tmp_path, TINY, "out=judge", "problems=10", "n=1", "rollout.max_response_tokens=2")
    assert done.returncode == 1
    assert "are wrong: there is nothing to tell apart" in done.stderr


def test_too_few_problems(tmp_path):
    done = command(tmp_path, TINY, "out=judge", "data.train.size=9")
    assert done.returncode == 1
    assert "leaves 9 problems, of which one in 5 is kept to measure. Give at least 10" in done.stderr


def test_data_without_training_problems(tmp_path):
    done = command(tmp_path, TINY, "out=judge", "data=math500")
    assert done.returncode == 1
    assert "data.train: is null: data=math500 has no training problems" in done.stderr
    assert not (tmp_path / "judge").exists()
