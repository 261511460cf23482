"""Checks that memory and open files stay constant over many outer steps.

    python benchmarks/soak.py                     # 500 steps of a very small model, sampled with Transformers
    python benchmarks/soak.py rollout=vllm steps=200

Runs `train.py` and measures its process from outside after each tenth of the steps: resident memory and open files, both
including child processes such as graders. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "logger=csv",
    "steps=500",
    "eval.every=25",
    "model=tiny_random",
    "model.architecture.hidden_size=64",
    "model.architecture.intermediate_size=64",
    "model.architecture.num_hidden_layers=2",
    "batch.prompts=8",
    "batch.group_size=4",
    "rollout.max_response_tokens=16",
    "data.train.size=256",
    "data.tests.in_dist.size=16",
    "data.tests.out_dist.size=16",
    "reward=format",
    "reward.pattern='[^a-m]*'",
]


def main(overrides: list[str]) -> None:
    settings = [*SETTINGS, *overrides]
    steps = int([s for s in settings if s.startswith("steps=")][-1].removeprefix("steps="))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *settings, f"hydra.run.dir={folder}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            metrics, seen = Path(folder) / "metrics.csv", []
            print("  step  memory (MiB)  open files", flush=True)
            for step in range(steps // 10, steps, steps // 10):
                while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < step + 2):
                    time.sleep(0.02)
                if process.poll() is not None:
                    sys.exit(f"the run ended before step {step} with exit status {process.returncode}")
                seen.append((step, *measured(process.pid)))
                print("{:6d}  {:12.1f}  {:10d}".format(*seen[-1]), flush=True)
            if process.wait() != 0:
                sys.exit(f"the run ended with exit status {process.returncode}")
    (first, memory, files), (last, memory_last, files_last) = seen[0], seen[-1]
    more, files = memory_last - memory, files_last - files
    kib = 1024 * more / (last - first)
    print(f"change from step {first} to {last}: {more:+.1f} MiB ({kib:+.1f} KiB a step), {files:+d} files")


def measured(pid: int) -> tuple[float, int]:
    """Resident memory in MiB and number of open files of a process and its children."""
    memory, files = 0.0, 0
    for each in [pid, *children(pid)]:
        status = Path(f"/proc/{each}/status").read_text().splitlines()
        memory += sum(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))
        files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return memory, files


def children(pid: int) -> list[int]:
    """The ids of all child processes, at any depth."""
    found = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return [*found, *(grandchild for child in found for grandchild in children(child))]


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    main(sys.argv[1:])
