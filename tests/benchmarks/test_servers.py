"""benchmarks/servers.py: what it starts, measures and prints."""

import json
import subprocess
import sys

from conftest import ROOT, environment

BENCHMARK = ROOT / "benchmarks" / "servers.py"


def test_tokens_per_second(tmp_path):
    """Of one way alone: engines of vLLM take a minute to start."""
    settings = ["model=tiny_random", "batch.prompts=2", "batch.group_size=2", "rollout.max_response_tokens=4"]
    command = [sys.executable, str(BENCHMARK), "--ways", "hf", "--repeats", "2", "--out", str(tmp_path), *settings]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment(tmp_path), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "servers.json").read_text())["ways"]
    assert list(found) == ["hf"]
    assert len(found["hf"]["tokens_per_s"]) == len(found["hf"]["loading_s"]) == 2
    assert all(4 <= tokens <= 16 for tokens in found["hf"]["tokens"])
    assert found["hf"]["sampler_mib"] > 100
    assert done.stdout.splitlines()[-1].startswith("hf ")
