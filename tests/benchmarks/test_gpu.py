"""`benchmarks/gpu.py` on the CPU: its numbers are there, and a part that fails or hangs does not end the others."""

import argparse
import csv
import subprocess
import sys
import time

import gpu
import gpu_passes
import pytest
import torch
from conftest import ROOT, composed, environment

from dash_exp.settings.overrides import number_of_kl


def test_the_parts_that_run_anywhere(tmp_path):
    """The second part has no model, and is left out."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--parts=small,smollm2,dash", f"--out={tmp_path}/out"]
    command += [f"--smollm2={tmp_path}/none", "--seconds=400"]
    variables = environment(tmp_path) | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "out" / "gpu.csv").open() as file:
        rows = {(row["part"], row["what"]): row["value"] for row in csv.DictReader(file)}
    assert ("small", "done") in rows and ("dash", "done") in rows, rows
    said = next(what for part, what in rows if part == "smollm2")
    assert said.startswith("not run: there is no ") and f"{tmp_path}/none" in said
    for what in ("update, packed: tokens", "update, padded: tokens", "sampling, Transformers: tokens"):
        assert float(rows["small", what]) > 0
    assert 0 < float(rows["small", "update, packed: of the matrix rate"]) < 150
    assert 0.2 < float(rows["small", "update: planned / measured"]) < 5
    assert float(rows["dash", "sampled tokens per s"]) > 0
    assert "update, packed: tokens" in ended.stdout


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path):
    child = f"import subprocess, sys; subprocess.run(['sleep', '30']); open('{tmp_path}/late', 'w')"
    start = time.monotonic()
    assert gpu.run([sys.executable, "-c", child], tmp_path / "log", limit_s=1.5) == "ended at its time limit of 2 s"
    assert time.monotonic() - start < 15 and not (tmp_path / "late").exists()


def test_how_a_command_ended_is_said(tmp_path):
    assert gpu.run([sys.executable, "-c", "pass"], tmp_path / "log", 30) == "done"
    said = gpu.run([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path / "log", 30)
    assert said.startswith("FAILED, status 1: ValueError: no such thing")


@pytest.mark.parametrize(
    ("part", "left_s", "said"),
    [
        (gpu.Part(9, None, needs=("no_such_package",)), 100, "there is no no_such_package"),
        (gpu.Part(9, None, files=("smollm2",)), 100, "there is no "),
        (gpu.Part(9, None), 1, "no time was left"),
    ],
)
def test_a_part_that_cannot_run_is_left_out(part, left_s, said, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "part", part)
    options = argparse.Namespace(out=tmp_path, smollm2=tmp_path / "none", gpu=False)
    seconds, rows, words = gpu.one_part("part", options, left_s)
    assert (seconds, rows) == (0, []) and words.startswith("not run: ") and said in words


def test_all_variants_have_the_gradient_of_the_same_work():
    """Packed and padded: the same step of the optimizer. 4 x 8 completions of 4 to 16 tokens."""
    options = argparse.Namespace(gpu=False)
    cfg = composed(*number_of_kl([*gpu.small(options), "+model.architecture.initializer_range=0.3"]))
    found = {}
    for name in ("packed", "padded"):
        torch.manual_seed(0)
        policy = gpu_passes.load(cfg)
        work = gpu_passes.work_of(cfg, policy.config.vocab_size)
        assert [len(g.completions) for g in work.groups(work.samples)] == [8] * 4
        assert {len(s.completion_ids) for s in work.longest} == {16} and len({len(s.completion_ids) for s in work.samples}) > 4
        with gpu_passes.variants(policy, torch.float32)[name]() as packed:
            gpu_passes.update(policy, torch.optim.SGD(policy.parameters(), lr=1e-3), work, work.samples, packed)
        found[name] = torch.cat([p.detach().flatten() for p in policy.parameters()])
    torch.testing.assert_close(found["packed"], found["padded"])


def test_shares_by_hand():
    rows = gpu_passes.Speed(measured=8e12, sheet=10e12).rows(lambda *row: row, "x", count=6, needed=4e12, seconds=2.0)
    # 6 tokens and 4 TFLOP in 2 s: 2 TFLOP/s of 8 and of 10
    assert [value for _, value, _ in rows] == [3.0, 2.0, 25.0, 20.0]
