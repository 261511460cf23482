"""Runs that start sampling servers themselves: the program with a stand-in for the package vllm, and with vLLM."""

import json
import os
import tempfile

import forked
import pytest
import torch
from conftest import LETTERS, ROOT, SMALL, TRAIN, composed, environment, program
from processes import command_lines, wait_until, wait_until_gone
from servers import START_S, Process, until

from dash_exp.commands import samplers
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.models import loading
from dash_exp.sampling import server_room
from dash_exp.sampling.own_servers import OwnServers

OWN = ["rollout=vllm_server", "rollout.sampler.colocate=true", "rollout.sampler.max_sequences=64", "hydra.run.dir=run"]
OF_VLLM = """
import json, os, sys
from pathlib import Path
from stand_in_server import serve

def main():
    words = sys.argv
    about = json.loads(words[words.index("--served-model-name") + 2]) | {"further": words[-1:]}
    pid = about.pop("pid")
    assert pid == os.getpid()
    asked = Path(os.environ["ASKED"])
    if asked.with_name("breaks").exists():
        sys.exit("there is no memory")
    serve(int(words[words.index("--port") + 1]), asked, **about)
"""


@pytest.fixture
def variables(tmp_path):
    """Those with which servers are stand-ins, in all but what starts them. `ASKED` is the file with what these are asked."""
    package = tmp_path / "package" / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (package.parents[1] / "__init__.py").touch()
    (package / "main.py").write_text(OF_VLLM)
    places = f"{tmp_path / 'package'}:{ROOT / 'tests'}:{ROOT / 'src'}"
    return {"PYTHONPATH": places, "ASKED": str(tmp_path / "asked"), "OMP_NUM_THREADS": "1"}


def asked(tmp_path):
    """The routes, in their order."""
    lines = (tmp_path / "asked").read_text().splitlines()
    return [json.loads(line)[0] for line in lines]


def test_a_run_of_two_ranks_starts_a_server_and_ends_it(tmp_path, variables):
    """The first rank talks to it: it sleeps once in each outer step, and wakes with new weights."""
    done = program(tmp_path, TRAIN, *LETTERS, *OWN, "trainer=ddp", "trainer.devices=2", env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until_gone(f"ASKED={tmp_path}", 60)
    routes = asked(tmp_path)
    assert [route for route in routes if "sleep" in route or "wake" in route] == [
        *["/wake_up?tags=weights", "/wake_up?tags=kv_cache"],  # evaluation before training, and the first step
        *["/sleep?level=2", "/wake_up?tags=weights", "/wake_up?tags=kv_cache"] * 2,
    ]
    assert routes.count("/pause") == 3
    rows = read_metrics(tmp_path / "run" / "metrics.csv")[1:]
    assert [row["completions/sampled"] for row in rows] == [32, 32]
    assert "without a GPU a sampling server gives back no memory while the policy trains" in done.stdout
    assert "sampling servers of this run: http://127.0.0.1:" in done.stdout
    said = (tmp_path / "run" / "sampling_server_1.txt").read_text()
    assert "http://127.0.0.1:" in said.splitlines()[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "done"


def test_a_run_whose_server_does_not_start_says_where_to_look(tmp_path, variables):
    (tmp_path / "breaks").touch()
    done = program(tmp_path, TRAIN, *LETTERS, *OWN, env=variables)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: rollout.sampler.colocate=true: a sampling server ended with status 1 (there is no memory). "
        f"See {tmp_path}/run/sampling_server_1.txt."
    )


def test_the_server_of_a_run_that_is_killed_ends(tmp_path, variables, monkeypatch):
    """The same run then goes on, on a server that someone else has started with its settings."""

    def started(*places):
        arguments = [
            *LETTERS,
            "rollout=vllm_server",
            *places,
            "rollout.sampler.max_sequences=64",
            "hydra.run.dir=run",
            "steps=1000",
        ]
        return forked.Program(TRAIN, arguments, tmp_path, environment(tmp_path) | variables, output, output)

    output, mark = tmp_path / "output.txt", f"ASKED={tmp_path}"
    with started("rollout.sampler.colocate=true") as run:
        snapshots = tmp_path / "run" / "checkpoints" / "resume"
        wait_until(lambda: list(snapshots.glob("*.pt")) or run.poll() is not None, 240, output.read_text)
        assert command_lines(mark), output.read_text()
    wait_until_gone(mark, 60)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server = Process(tmp_path, run=tmp_path / "run")
    until(server.ready, 240)
    with started(f"rollout.sampler.servers=[{server.url}]") as run:
        wait_until(lambda: "resumes after outer step" in output.read_text() or run.poll() is not None, 240, output.read_text)
        assert run.poll() is None, output.read_text()
    server.kill()


def test_the_places_of_servers(monkeypatch):
    def places(*overrides, visible=None):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return samplers.gpus(composed(*OWN[:2], *overrides))

    two = ["trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=2"]
    assert places(*two) == [None]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert places("trainer=cpu") == [None]
    assert places("trainer=gpu") == ["0"]
    assert places(*two) == ["0", "1"]
    assert places(*two, visible="GPU-7, 5,6") == ["GPU-7", "5"]


def test_servers_end_where_the_sampler_cannot_be_made(monkeypatch, policy, tokenizer, tmp_path):
    class Own(OwnServers):
        urls = ()

        def __init__(self, *arguments):
            pass

        def close(self):
            closed.append(self)

    closed = []
    monkeypatch.setattr(samplers, "OwnServers", Own)
    with pytest.raises(UserError, match="is empty"):
        samplers.sampler_of(composed(*OWN[:2]), policy, tokenizer, tmp_path)
    assert len(closed) == 1


def test_no_folder_is_left_in_the_place_of_temporary_files(monkeypatch, tmp_path):
    """That of a run that was killed goes with the next one; not that of a run whose servers are starting."""

    def starting(settings, *others):
        kept.append(sorted(folder.name for folder in tmp_path.iterdir()))
        assert process.in_use(settings)
        assert (settings / "config.yaml").is_file()

    kept = []
    killed, other = (tmp_path / f"{samplers.FOLDER}{name}" for name in ("killed", "other"))
    for folder in (killed, other):
        folder.mkdir()
    lock = server_room.locked(other)
    for folder in (killed, other):
        os.utime(folder, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(samplers, "OwnServers", starting)
    samplers.started(composed(*OWN[:2]), tmp_path)
    assert other.name in kept[0]
    assert killed.name not in kept[0]
    assert len(kept[0]) == 2
    assert list(tmp_path.iterdir()) == [other]
    lock.release()


@pytest.mark.needs("vllm")
def test_a_run_with_vllm_and_its_checkpoint_by_hand(tmp_path, tokenizer):
    """The server's log-probabilities are those of the policy, also after it was asked to sleep: without a GPU it says that it
    does not.
    """
    variables = environment(tmp_path) | {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "MARK": str(tmp_path)}
    variables["VLLM_LOGGING_LEVEL"] = "INFO"  # an engine in this process, of another test, has set it
    overrides = [*SMALL, *OWN, "rollout.sampler.cpu_cache_gb=0.25", "eval.every=2"]
    output = tmp_path / "output.txt"
    with forked.Program(TRAIN, overrides, tmp_path, variables, output, output) as run:
        assert run.wait(2 * START_S) == 0, output.read_text()
    wait_until_gone(f"MARK={tmp_path}", 60)
    folder = tmp_path / "run"
    rows = read_metrics(folder / "metrics.csv")[1:]
    assert [row["completions/sampled"] for row in rows] == [32, 32]
    assert max(row["mismatch/max_nats"] for row in rows) < 1e-3
    said = (folder / "sampling_server_1.txt").read_text()
    assert "sleep mode is not supported on CPU, ignore it" in said
    assert said.count("fall asleep") == 2  # once in each outer step

    server = Process(tmp_path, "checkpoint=last", run=folder)
    try:
        until(server.ready, START_S)
        request = {"prompt": "3+4=", "max_tokens": 40, "temperature": 0.0}
        by_hand = server.call("POST", "/v1/completions", json=request).json()["choices"][0]["text"]
    finally:
        server.kill()
    trained = loading.load_policy(str(folder / "checkpoints" / "last")).eval()
    ids = torch.tensor([tokenizer("3+4=").input_ids])
    greedy = trained.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    assert by_hand == tokenizer.decode(greedy, skip_special_tokens=True) != ""
