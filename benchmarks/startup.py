"""Measures the time from the start of a run to its first sampled token, and where this time goes.

    python benchmarks/startup.py                       # the default settings without a tracker, five runs
    python benchmarks/startup.py logger=wandb runs=3   # other settings, three runs

Runs `train.py` with steps=1 in new processes and folders. For each milestone it prints the median of the seconds since the
start of the process, and of the CPU seconds of all its threads (which vary less on a shared machine). `train.py` is not
changed: the child process wraps the functions at the milestones before it runs `train.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MILESTONES = {
    "started": "the interpreter runs",
    "validated": "the settings are checked",
    "imported": "torch, Lightning and Transformers are imported",
    "built": "policy, data and the other parts are built",
    "first token": "first token of the evaluation of the base model",
    "training token": "first token of the first outer step",
    "sampled": "all completions of that step are sampled and graded",
    "ended": "the process has ended",
}
CHILD = """
import json, runpy, sys, time

program, marks, start = sys.argv[1], open(sys.argv[2], "w"), float(sys.argv[3])
sys.argv = [program, *sys.argv[4:]]
sys.path[0] = program.rpartition("/")[0]

def mark(name):
    print(json.dumps([name, time.time() - start, time.process_time()]), file=marks, flush=True)

def wrap(owner, name, before=None, after=None):
    function = getattr(owner, name)
    def wrapped(*args, **kwargs):
        if before: before()
        result = function(*args, **kwargs)
        if after: after(result)
        return result
    setattr(owner, name, wrapped)

def imported():  # `run` has been entered
    mark("imported")
    wrap(sys.modules["dash_exp.commands.run"], "build", after=built)

def built(parts):
    mark("built")
    def next_token(name):  # the next time that logits are computed
        def told(*_):
            hook.remove()
            mark(name)
        hook = parts.module.policy.get_output_embeddings().register_forward_hook(told)
    next_token("first token")
    wrap(parts.data, "rollouts", before=lambda: next_token("training token"), after=lambda _: mark("sampled"))

mark("started")
from dash_exp.core import process
from dash_exp.settings import validate
wrap(validate, "validate", after=lambda _: mark("validated"))
wrap(process, "alone_in", before=imported)
runpy.run_path(program, run_name="__main__")
"""


def main(arguments: list[str]) -> None:
    runs = int(next((a.removeprefix("runs=") for a in arguments if a.startswith("runs=")), 5))
    settings = ["logger=csv", "steps=1", *(a for a in arguments if not a.startswith("runs="))]
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in MILESTONES}
    for i in range(runs):
        for name, seconds, cpu_seconds in one(settings):
            seen[name].append((seconds, cpu_seconds))
        print(f"run {i + 1}/{runs}: first token after {seen['first token'][-1][0]:.2f} s", file=sys.stderr, flush=True)
    print(f"{'seconds':>8}{'CPU s':>8}")
    for name, meaning in MILESTONES.items():
        if seen[name]:
            print("{:8.2f}{:8.2f}".format(*map(statistics.median, zip(*seen[name], strict=True))), f" {name}: {meaning}")


def one(settings: list[str]) -> list[tuple[str, float, float]]:
    """Name, seconds and CPU seconds of each milestone of one run, when it was first reached."""
    with tempfile.TemporaryDirectory() as folder:
        marks, before = Path(folder) / "marks", os.times()
        start = time.time()
        command = [sys.executable, "-c", CHILD, str(ROOT / "train.py"), str(marks), str(start), *settings]
        done = subprocess.run(
            [*command, f"hydra.run.dir={folder}/run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end, after = time.time() - start, os.times()
        if done.returncode != 0:
            sys.exit(f"the run failed with exit status {done.returncode}:\n{done.stdout}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        found = [tuple(json.loads(line)) for line in marks.read_text().splitlines()]
    return list({mark[0]: mark for mark in reversed([*found, ("ended", end, cpu)])}.values())


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    main(sys.argv[1:])
