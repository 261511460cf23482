"""Checks that memory and open files stay constant over many outer steps.

    python benchmarks/soak.py                     # 500 steps of a very small model, sampled with Transformers
    python benchmarks/soak.py rollout=vllm steps=200
    python benchmarks/soak.py --every 1 --out outputs/soak.csv steps=100 model=smollm2-135m model.compute_dtype=bfloat16 \\
        data=reasoning_gym data.task=chain_sum data.max_response_tokens=64 batch.prompts=32 eval.limit=16    # a real model

Runs `train.py` and measures its process from outside after every `--every` steps (a tenth of the steps if it is not given):
resident memory and open files, both including child processes such as graders, and the highest memory of the main process so
far. Memory of the first steps still grows: moments of the optimizer, the longest batches. So the change is also given for the
second half of the steps alone. Settings of the small model, its data and its reward are left out where another model, data or
reward is chosen. Linux only.

The run has the environment of this command. Variables that change what memory a CPU run keeps:

- `ONEDNN_PRIMITIVE_CACHE_CAPACITY` (oneDNN): compiled products that are kept, one for each new shape and number type.
  `LRU_CACHE_CAPACITY` (torch's layer above it): the same, with what belongs to them. Both are 1024 by default, and 64 in
  `train.py` where they are not set. 16-bit products go through both where the processor has instructions for them, 32-bit ones
  mostly do not. Micro-batches and decoding have many shapes.
- `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `MALLOC_ARENA_MAX` (glibc): what is given back to the system when it is
  freed, and how many heaps threads have.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SETTINGS = ["logger=csv", "steps=500", "eval.every=25", "batch.prompts=8", "batch.group_size=4"]
# By group: used where no file of the group is chosen. Another file may not have these options.
OF_DEFAULT = {
    "model": [
        "model=tiny_random",
        "model.architecture.hidden_size=64",
        "model.architecture.intermediate_size=64",
        "model.architecture.num_hidden_layers=2",
    ],
    "data": [
        "data.train.size=256",
        "data.tests.in_dist.size=16",
        "data.tests.out_dist.size=16",
        "rollout.max_response_tokens=16",
    ],
    "reward": ["reward=format", "reward.pattern='[^a-m]*'"],
}


class Seen(NamedTuple):
    """After an outer step: resident memory and its highest value so far in MiB, number of open files."""

    step: int
    mib: float
    highest_mib: float
    files: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--every", type=int, help="outer steps from one measurement to the next")
    parser.add_argument("--out", type=Path, help="CSV file for the measurements")
    arguments = parser.parse_intermixed_args()
    overrides = settings(arguments.overrides)
    steps = int([s for s in overrides if s.startswith("steps=")][-1].removeprefix("steps="))
    every = arguments.every or max(1, steps // 10)
    seen = []
    print("  step  memory (MiB)  highest (MiB)  open files", flush=True)
    for each in watched(overrides, range(every, steps, every)):
        print("{:6d}  {:12.1f}  {:13.1f}  {:10d}".format(*each), flush=True)
        seen.append(each)
        if arguments.out:
            write(arguments.out, seen)
    print(change(seen))
    if len(seen) > 3:
        print(change(seen[len(seen) // 2 :]))


def settings(given: Sequence[str]) -> list[str]:
    """The settings of the run: those of this benchmark that fit, then those that were given."""
    chosen = {setting.partition("=")[0] for setting in given}
    if "data" in chosen:  # which brings a reward of its own
        chosen.add("reward")
    of_default = [s for group, those in OF_DEFAULT.items() if group not in chosen for s in those]
    return [*SETTINGS, *of_default, *given]


def watched(overrides: Sequence[str], steps: Iterable[int]) -> Iterable[Seen]:
    """Run it, and measure it right after each of these outer steps. Ends the program where the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            metrics = Path(folder) / "metrics.csv"
            for step in steps:
                # a line of names, one of the base model, and one of each step
                while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < step + 2):
                    time.sleep(0.02)
                if process.poll() is not None:
                    sys.exit(f"the run ended before step {step} with exit status {process.returncode}")
                yield Seen(step, *measured(process.pid))
            if process.wait() != 0:
                sys.exit(f"the run ended with exit status {process.returncode}")


def change(seen: Sequence[Seen]) -> str:
    """What has changed from the first of these measurements to the last."""
    first, last = seen[0], seen[-1]
    more, steps = last.mib - first.mib, max(1, last.step - first.step)
    by_step = f"{1024 * more / steps:+.1f} KiB a step"
    return f"change from step {first.step} to {last.step}: {more:+.1f} MiB ({by_step}), {last.files - first.files:+d} files"


def write(path: Path, seen: Sequence[Seen]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Seen._fields, *seen])


def measured(pid: int) -> tuple[float, float, int]:
    """Resident memory in MiB and number of open files of a process and its children; the former's highest, without them."""
    memory, files = 0.0, 0
    for each in [pid, *children(pid)]:
        memory += resident(each, "VmRSS")
        files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return memory, resident(pid, "VmHWM"), files


def resident(pid: int, field: str) -> float:
    """MiB from /proc: VmRSS is resident now, VmHWM the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def children(pid: int) -> list[int]:
    """The ids of all child processes, at any depth."""
    found = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return [*found, *(grandchild for child in found for grandchild in children(child))]


if __name__ == "__main__":
    main()
