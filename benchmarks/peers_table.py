"""What the runs of `peers.py` took, as tables and a figure. `metrics.csv` of a run has at least the columns `COLUMNS`."""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

OURS = {
    f"{algo}{'' if rollout == 'hf' else '_vllm'}": [f"algo={algo}", f"rollout={rollout}"]
    for rollout in ("hf", "vllm")
    for algo in ("dash", "no_gf", "grpo")
} | {"dash_screen": ["algo=dash", "rollout=hf", "select=screen"]}
TRL = ["trl", "trl_coupled"]
PHASES = ["sample", "score", "update"]  # the phases that TRL also has
SAMPLED, GREEDY = "eval/in_dist/avg@2", "accuracy/in_dist"
COLUMNS = ["step", "time/elapsed_s", *(f"time/{phase}_s" for phase in PHASES), "tokens/sampled", "tokens/trained"]
COLUMNS += [SAMPLED, GREEDY]
BY_TOKEN = [f"{phase}_ms_per_token" for phase in ("sample", "update", "step")]

Row = Mapping[str, float]


def by_token(rows: Sequence[Row]) -> dict[str, float]:
    """Times and rates of some outer steps by token: completions of different runs grow apart in length.

    `..._ms_per_token`: milliseconds of a phase, or of all of them, for each token that was sampled. A filter makes the update
    cheaper by this measure. `sampled_tokens_per_s` and `trained_tokens_per_s` are the rates of the phases: the second counts
    what was passed through the policy, prompts too.
    """
    seconds = {phase: sum(row[f"time/{phase}_s"] for row in rows) for phase in PHASES}
    sampled, trained = (sum(row[f"tokens/{name}"] for row in rows) for name in ("sampled", "trained"))
    times = {"sample": seconds["sample"], "update": seconds["update"], "step": sum(seconds.values())}
    return {f"{name}_ms_per_token": 1000 * s / sampled for name, s in times.items()} | {
        "sampled_tokens_per_s": sampled / seconds["sample"],
        "trained_tokens_per_s": trained / seconds["update"],
    }


def read(folder: Path) -> list[dict[str, float]]:
    """The outer steps of a finished run, without the evaluation of the base model."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v and k in COLUMNS} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"] > 0]


def summary(folder: Path, options: argparse.Namespace, parameters: int) -> dict[str, float]:
    """The results of a finished run: seconds and steps to the target (infinite if not reached), per step and token, and peak
    memory. `parameters`: number of parameters of the policy.
    """
    rows = read(folder)
    before, result = 0.0, {}
    if options.only_time:
        before = rows.pop(0)["time/elapsed_s"]  # the first step is a warm-up
    else:
        reached = [row for row in rows if row.get(SAMPLED, 0.0) >= options.target]
        result["seconds_to_target"] = reached[0]["time/elapsed_s"] if reached else float("inf")
        result["steps_to_target"] = reached[0]["step"] if reached else float("inf")
        result["final_accuracy"] = rows[-1].get(SAMPLED, float("nan"))
        result["final_greedy_accuracy"] = rows[-1].get(GREEDY, float("nan"))
    result["seconds_per_step"] = (rows[-1]["time/elapsed_s"] - before) / len(rows)
    for phase in PHASES:
        result[f"{phase}_s_per_step"] = sum(row[f"time/{phase}_s"] for row in rows) / len(rows)
    result["sampled_tokens_per_step"] = sum(row["tokens/sampled"] for row in rows) / len(rows)
    result |= by_token(rows)
    result["trained_tflops"] = (
        6 * parameters * result["trained_tokens_per_s"] / 1e12
    )  # backward takes twice the operations of forward
    peaks = json.loads((folder / "peak.json").read_text())
    return result | {name: mb for name, mb in peaks.items() if name.startswith("peak_")}


def report(out: Path, options: argparse.Namespace, parameters: int, computed: Mapping[str, str]) -> None:
    """Print the tables and write them and the figure. `computed`: how each arm computes, such as "bfloat16"."""
    seeds = range(options.seeds)
    runs = {(arm, seed): summary(out / arm / str(seed), options, parameters) for arm in options.arms for seed in seeds}
    names = list(next(iter(runs.values())))
    with (out / "runs.csv").open("w", newline="") as file:
        rows = [[arm, seed, computed[arm], *run.values()] for (arm, seed), run in runs.items()]
        csv.writer(file).writerows([["arm", "seed", "computed_in", *names], *rows])
    print(f"\nmedians of {options.seeds} seed(s)" + ("" if options.only_time else f"; target {options.target:.0%}"))
    print(f"{'':24}" + "".join(f"{arm:>13}" for arm in options.arms))
    print("computed in: " + "; ".join(f"{arm} {computed[arm]}" for arm in options.arms))
    for name in names:
        values = (statistics.median(runs[arm, seed][name] for seed in seeds) for arm in options.arms)
        print(f"{name:24}" + "".join(f"{value:13,.3f}" for value in values))
    print("\nDivided by TRL, seed by seed: median (lowest to highest)")
    ratios = ratio_rows(runs, options, names)
    for arm, peer, what, *spread in ratios:
        said = "not reached by every seed" if math.isnan(spread[0]) else "{:7.3f} ({:.3f} to {:.3f})".format(*spread)
        print(f"  {arm:12} / {peer:12} {what:20} {said}")
    with (out / "ratios.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["arm", "against", "what", "median", "lowest", "highest"], *ratios])
    if not options.only_time:
        draw(out, options)


def ratio_rows(
    runs: Mapping[tuple[str, int], Row], options: argparse.Namespace, names: Sequence[str]
) -> list[tuple[str, str, str, float, float, float]]:
    """Arm, peer, what is compared, and median, lowest and highest of the ratios of the runs with the same seed."""
    first = "seconds_per_step" if options.only_time else "seconds_to_target"
    compared = dict.fromkeys([first, "seconds_per_step", *BY_TOKEN, *(n for n in names if n.startswith("peak_"))])
    found = []
    for peer in [arm for arm in TRL if arm in options.arms]:
        for arm in [arm for arm in options.arms if arm in OURS]:
            for what in compared:
                ratios = [ratio(runs[arm, seed][what], runs[peer, seed][what]) for seed in range(options.seeds)]
                reached = not any(map(math.isnan, ratios))
                spread = (statistics.median(ratios), min(ratios), max(ratios)) if reached else (math.nan,) * 3
                found.append((arm, peer, what, *spread))
    return found


def ratio(ours: float, theirs: float) -> float:
    """NaN if one of them did not reach the target; the median is then NaN as well."""
    return float("nan") if math.inf in (ours, theirs) else ours / theirs


def draw(out: Path, options: argparse.Namespace) -> None:
    """Accuracy over seconds of training: a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for i, arm in enumerate(options.arms):
        for seed in range(options.seeds):
            points = [(row["time/elapsed_s"], row[SAMPLED]) for row in read(out / arm / str(seed)) if SAMPLED in row]
            style = {"color": f"C{i}", "lw": 1.3, "ls": "--" if arm in TRL else "-"}
            axes.plot(*zip(*points, strict=True), label=None if seed else arm, **style)
    axes.axhline(options.target, color="0.6", lw=0.8)
    axes.set(xscale="log", xlabel="seconds of training (without evaluation)", ylabel="accuracy on the test problems, sampled")
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "curves.png", dpi=150)
