"""Compares the memory and time that `plan=true` predicts with those of a run.

    python benchmarks/plan.py                                           # the embedded default, 2 outer steps
    python benchmarks/plan.py model=qwen2.5-0.5b-random trainer=gpu     # some minutes on a GPU
    python benchmarks/plan.py --scaling                                 # no run: predicted seconds by model and number of GPUs
    python benchmarks/plan.py --like-memory                             # the run of memory.py: 12 GiB, some minutes on a CPU

The run has its own process (`peak_memory.py`). On a CPU, peaks are of resident memory: all of it, and the part above the
imports. On a GPU, peaks are of memory allocated by torch, by phase; the plan is then taken without the CUDA context and the
fragmentation of the allocator. Seconds are the median of the outer steps after the first. The plan uses the mean completion
length of the run. Ratios are predicted / measured. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from peak_memory import ROOT

from dash_exp.commands import cli
from dash_exp.planning import advice, held, plan, table
from dash_exp.planning.job import job_of
from dash_exp.planning.machine import KNOWN, this_machine
from dash_exp.planning.timing import seconds
from dash_exp.settings.overrides import number_of_kl

DEFAULTS = {"steps": "steps=3", "logger": "logger=csv", "resume_every": "resume_every=null", "eval": "eval.limit=64"}
UNSEEN = ("CUDA", "fragments", "libraries", "process")  # not part of the memory that torch has allocated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--like-memory", action="store_true", help="use the settings of memory.py")
    parser.add_argument("--scaling", action="store_true", help="print the estimates for 2 to 64 GPUs")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_intermixed_args()
    if arguments.scaling:
        print(scaling(arguments.overrides))
        return
    given = list(arguments.overrides)
    if arguments.like_memory:
        from memory import OVERRIDES

        given = [*OVERRIDES, "rollout.max_response_tokens=128", *given]
    named = {o.lstrip("~+").split("=")[0].split(".")[0] for o in given}
    overrides = [*(default for name, default in DEFAULTS.items() if name not in named), *given]
    run = against(overrides)
    print(table.table(run.cfg, run.found))
    print(f"\n{'':40}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for name, (predicted, seen) in run.compared.items():
        print(f"{name:40}{predicted:12,.2f}{seen:12,.2f}{predicted / seen if seen else float('nan'):8.2f}")
    if arguments.out:
        numbers = {
            "overrides": overrides,
            "compared": run.compared,
            "memory": run.found.memory,
            "seconds": run.found.seconds,
            "peaks": run.peaks,
        }
        arguments.out.write_text(json.dumps(numbers, indent=1) + "\n")


MODELS = {
    "Qwen2.5-0.5B": [],
    "Qwen2.5-1.5B": ["model=qwen2.5-1.5b"],
    "Qwen2.5-3B": ["model=qwen2.5-3b"],
    "Llama-3-8B": ["model.path=meta-llama/Meta-Llama-3-8B", "model.dtype=bfloat16"],
    "Llama-3-70B": ["model.path=meta-llama/Meta-Llama-3-70B", "model.dtype=bfloat16"],
}
SETTINGS = ["experiment=paper_math", "rollout=vllm_server", "batch.prompts=1024", "batch.group_size=8"]


def scaling(overrides: Sequence[str]) -> str:
    """Predicted seconds of a step: half of the GPUs train and half are sampling servers, 8 GPUs per machine."""
    lines = [f"| model | GPUs | {'sample':>8} | {'update':>8} | {'between':>8} | {'sync':>8} | {'together':>8} | speed-up |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, given in MODELS.items():
        cfg = cli.composed([*SETTINGS, *given, *overrides])
        first = None
        for gpus in (2, 8, 16, 32, 64):
            trainers = gpus // 2
            strategy = "fsdp" if name.startswith("Llama") and trainers > 1 else "ddp"
            servers = [f"http://s:{i}" for i in range(gpus - trainers)]
            changes = {"trainer.devices": min(trainers, 8), "trainer.num_nodes": max(1, trainers // 8)}
            now = advice.changed(cfg, {**changes, "trainer.strategy": strategy, "rollout.sampler.servers": servers})
            device = KNOWN["h200" if "70B" in name else "h100"]
            job = job_of(now, device)
            s = seconds(job, device, plan.engine_of(job, device)[1])
            total = sum(s.values())
            first = first or total
            cells = [s["sample"], s["update"], s.get("between devices", 0.0), s["sync"], total]
            lines.append(f"| {name} | {gpus} | " + " | ".join(f"{x:8,.2f}" for x in cells) + f" | {first / total:8.1f} |")
    return "\n".join(lines)


class Run(NamedTuple):
    """A finished run and its plan. `rows`: of metrics.csv, without base model and warm-up. `compared`: see `compare`."""

    cfg: DictConfig
    found: plan.Plan
    peaks: dict[str, Any]
    rows: list[dict[str, str]]
    compared: dict[str, tuple[float, float]]


def against(overrides: Sequence[str]) -> Run:
    """Run it, and plan it with the mean completion length that it had."""
    peaks, rows = measured(overrides)
    later = rows[2:] or rows[1:]  # row 0 is the base model, row 1 the warm-up
    length = statistics.mean(float(r["length/mean_tokens"]) for r in later)
    cfg = cli.composed(number_of_kl([*overrides, f"plan_tokens={max(1, round(length))}"]))
    found = plan.planned(cfg, this_machine(cfg.trainer.accelerator, cfg.model.compute_dtype))
    return Run(cfg, found, peaks, later, compare(found, peaks, later))


def measured(overrides: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Run it. Returns its peaks in MiB and its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = Path(folder) / "memory.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "peak_memory.py"), str(peaks), *overrides]
        done = subprocess.run([*command, f"hydra.run.dir={folder}/run"], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}{done.stderr}\nthe run failed with exit status {done.returncode}")
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            return json.loads(peaks.read_text()), list(csv.DictReader(file))


def compare(found: plan.Plan, peaks: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[float, float]]:
    """Predicted and measured values, in MiB and seconds."""
    compared = {}
    if found.device.kind == "gpu":
        for phase, names in (("sample", ("sample", "eval")), ("update", ("update",))):
            tensors = sum(n for part, n in found.memory[phase].items() if part not in UNSEEN)
            compared[f"{phase}: allocated, MiB"] = (tensors / 2**20, max(peaks["gpu"].get(n, 0.0) for n in names))
    else:
        seen = max(peaks["rss"].values())
        compared["all, MiB"] = (found.peak / 2**20, seen)
        compared["above the imports, MiB"] = ((found.peak - held.LIBRARIES) / 2**20, seen - peaks["imports"])
    for phase in ("sample", "update"):
        taken = statistics.median(float(r[f"time/{phase}_s"]) for r in rows)
        compared[f"{phase}, s"] = (found.seconds[phase], taken)
    return compared


if __name__ == "__main__":
    main()
