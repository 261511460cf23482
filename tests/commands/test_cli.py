"""`python train.py` as typed: what works, and what a mistake looks like."""

import json

import pytest
from conftest import ROOT, SMALL, TRAIN, program

from dash_exp.commands import cli


def test_the_users_sweep(train, tmp_path):
    done = train("-m", *SMALL, "algo=grpo,dash", "kl=0,0.04")
    assert done.returncode == 0, done.stderr
    results = sorted((tmp_path / "multirun" / "small").rglob("result.json"))
    assert len(results) == 4
    assert {json.loads(r.read_text())["status"] for r in results} == {"done"}
    for algo in ("grpo", "dash"):
        for kl in ("0", "0.04"):
            assert [r for r in results if f"algo={algo}" in str(r) and str(r.parent).endswith(f"kl.coef={kl}")] or [
                r for r in results if f"algo={algo}" in str(r) and f"kl.coef={kl}," in str(r)
            ]
    assert "report multirun/small/report/report.html" in done.stdout
    text = (tmp_path / "multirun" / "small" / "report" / "report.md").read_text()
    assert "grpo, kl.coef=0.04" in text
    assert "was not swept" not in text  # each swept value was composed beside the running sweep
    assert "could not be checked" not in text
    again = train("-m", *SMALL, "algo=grpo,dash", "kl=0,0.04", "hydra.callbacks.ledger.report=null")
    assert again.returncode == 0
    assert "sweep of 4 cells into multirun/small, 4 of them done before" in again.stdout
    assert "step 1/" not in again.stdout


def test_a_single_run_with_any_coefficient(tmp_path):
    done = program(tmp_path, TRAIN, *SMALL, "kl=0.01", is_forked=False)
    assert done.returncode == 0, done.stderr
    assert "KL                        0.01 constant, k3 in the loss (with reference model)" in done.stdout
    assert "completions per step      32 = 8 prompts x 4" in done.stdout
    assert "step 2/2" in done.stdout
    assert "out of distribution" in done.stdout
    (folder,) = (tmp_path / "outputs" / "small").iterdir()
    assert "coef: 0.01" in (folder / "config.yaml").read_text()


# Those that are found when the model is there; the others are tried in test_bad_input.py.
MISTAKES = [
    (["rollout.max_response_tokens=5000"], ["do not fit", "context of 2048", "rollout.max_response_tokens"]),
    (["batch.prompts=100000"], ["batch.prompts=100000", "training problems"]),
    (["-m", "algo=grpo,dash", "kl=0,-1"], ["kl.coef=-1", "cell algo=grpo"]),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_end_with_one_message(train, tmp_path, arguments, says):
    done = train(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for part in says:
        assert part in done.stderr
    assert not list(tmp_path.rglob("metrics.csv"))  # nothing was started
    assert all(json.loads(file.read_text())["status"] == "failed" for file in tmp_path.rglob("result.json"))


def test_the_traceback_comes_when_asked_for(train):
    assert "Traceback" in train("kl=-1", env={"HYDRA_FULL_ERROR": "1"}).stderr


def test_help_lists_the_choices(train):
    done = train("--help")
    assert done.returncode == 0
    assert "algo: cispo, dapo, dash" in done.stdout


def test_the_configuration_is_found_from_inside_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").touch()
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["/somewhere/else/program.py"])
    monkeypatch.chdir(tmp_path / "outputs" / "run")
    assert cli.conf_folder() == tmp_path / "conf"
    monkeypatch.chdir(tmp_path.parent)
    assert cli.conf_folder() == ROOT / "conf"  # the package's own
    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py")])
    monkeypatch.chdir(tmp_path)
    assert cli.conf_folder() == ROOT / "conf"  # beside the program


def test_a_command_that_no_ranks_follow_is_done_by_each_process(monkeypatch):
    """As `evaluate`, where srun has started two of it."""
    done = []
    monkeypatch.setattr(cli, "_launch", lambda main: main())
    monkeypatch.setattr(cli.place, "size", lambda: 2)
    cli.launch(lambda: done.append(1))
    assert done == [1]
