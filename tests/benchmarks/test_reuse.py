"""benchmarks/reuse.py on the shipped model."""

import subprocess
import sys

from conftest import ROOT, environment

from dash_exp.models import loading

TINY = str(loading.ASSETS / "tiny")


def reused(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "reuse.py"), *arguments, "--repeats", "1", "batch.prompts=4"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_drafts_of_the_same_policy_are_kept_whole(tmp_path):
    assert "median: 100% of the draft's tokens kept, 0% of the drafts cut" in reused(tmp_path, TINY, TINY)


def test_drafts_of_another_policy_are_cut(tmp_path):
    policy = loading.load_policy(TINY)
    for weight in policy.parameters():
        weight.data *= 0.9
    policy.save_pretrained(tmp_path)
    loading.load_tokenizer(TINY).save_pretrained(tmp_path)
    kept = float(reused(tmp_path, TINY, str(tmp_path)).split("median: ")[1].split("%")[0])
    assert 0 < kept < 100
