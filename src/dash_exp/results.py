"""Results for people and files: of a run `result.json`, the table at its end and `curves.png`; of an evaluation likewise."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dash_exp.metrics import PHASES
from dash_exp.progress import duration

PHASE_COLOURS = dict(zip(PHASES, ["#4c72b0", "#8172b3", "#dd8452", "#937860", "#c7c7c7"], strict=True))


TEST_LABELS = {"in_dist": "in distribution", "out_dist": "out of distribution"}


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """`result.json`, whole or not at all."""
    new = run_dir / "result.json.new"
    new.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(new, run_dir / "result.json")


def result_table(result: Mapping[str, Any]) -> str:
    """The end of a run for people: accuracy, seconds by phase, counts."""

    def percent(name: str) -> str:
        value = result.get(name)
        return "      -" if value is None else f"{100 * value:6.1f}%"

    total = result["time/total_s"]
    lines = [f"{'accuracy (greedy)':24}{'base':>8}{'final':>8}"]
    tests = [key.split("/")[1] for key in result if key.startswith("accuracy/") and key.endswith("/base")]
    for name in tests:
        label = TEST_LABELS.get(name, name)
        lines.append(f"  {label:22}{percent(f'accuracy/{name}/base'):>8}{percent(f'accuracy/{name}/final'):>8}")
    lines.append(f"{'mean length (greedy)':24}{'base':>8}{'final':>8}")
    for name in tests:
        base, final = (result.get(f"eval/{name}/length/mean_tokens/{when}") for when in ("base", "final"))
        shown = ["-" if n is None else f"{n:.1f}" for n in (base, final)]
        lines.append(f"  {TEST_LABELS.get(name, name):22}{shown[0]:>8}{shown[1]:>8}")
    lines.append(f"{'time':24}{duration(total):>8}")
    accounted = 0.0
    for phase in PHASES:
        seconds = result[f"time/{phase}_s"]
        accounted += seconds
        lines.append(f"  {phase:22}{seconds:7.1f}s{100 * seconds / max(total, 1e-9):7.0f}%")
    other = "other (set-up, files)" if accounted <= total else "of these at once"
    lines.append(f"  {other:22}{abs(total - accounted):7.1f}s{100 * abs(1 - accounted / max(total, 1e-9)):7.0f}%")
    lines.append(f"completions {result['completions/sampled']:,} sampled, {result['completions/kept']:,} kept")
    if result["completions/sampled"] and not result["completions/kept"]:
        lines.append("no completion entered the gradient: nothing was learned")
    failed = {name: result.get(name, 0) for name in ("score/timeouts", "score/errors", "eval/timeouts", "eval/errors")}
    if any(failed.values()):
        lines.append("gradings that did not come to an end: " + ", ".join(f"{n} {name}" for name, n in failed.items() if n))
    lines.append(f"tokens {result['tokens/sampled']:,} sampled, {result['tokens/trained']:,} trained on")
    return "\n".join(lines)


def evaluation_table(name: str, problems: int, found: Mapping[str, float | None]) -> str:
    """The metrics of one test set (`Evaluation.summary`), each with its 95% interval."""
    lines = [f"{f'{name}, {problems:,} problem(s)':36}{'value':>9}   95% interval"]
    for metric, value in found.items():
        if metric.endswith(("/low", "/high")):
            continue
        shown = [_shown(metric, x) for x in (value, found[f"{metric}/low"], found[f"{metric}/high"])]
        interval = f"{shown[1]:>9} to {shown[2].strip()}" if found[f"{metric}/low"] is not None else f"{'-':>9}"
        lines.append(f"  {metric:34}{shown[0]:>9}{interval}")
    return "\n".join(lines)


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if metric.endswith("tokens") else f"{100 * value:.1f}%"


def plot_pass_at_k(tests: Mapping[str, Mapping[str, Any]], k: Sequence[int], path: Path) -> None:
    """pass@k against k, a line per test set, with its 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, found), colour in zip(tests.items(), itertools.cycle(["#dd8452", "#55a868", "#4c72b0", "#8172b3"])):
        axes.plot(k, [found[f"pass@{i}"] for i in k], "o-", color=colour, label=name)
        low, high = ([found[f"pass@{i}/{end}"] for i in k] for end in ("low", "high"))
        if None not in low:
            axes.fill_between(k, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(k), [str(i) for i in k])
    axes.minorticks_off()
    axes.set(xlabel="k", ylabel="pass@k", title="band: 95% interval over problems")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_curves(rows: Sequence[Mapping[str, Any]], seconds: Mapping[str, float], path: Path) -> None:
    """Reward and accuracy against seconds of training, and seconds by phase (those of training and those of evaluation)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def points(name: str) -> tuple[list[float], list[float]]:
        found = [(r["time/elapsed_s"], r[name]) for r in rows if r.get(name) is not None]
        return [x for x, _ in found], [y for _, y in found]

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[3, 1], layout="constrained")
    left.plot(*points("reward/mean"), color="#4c72b0", label="reward, sampled completions")
    left.plot(*points("accuracy/in_dist"), "o-", color="#dd8452", label="accuracy in distribution, greedy")
    tests = [name.removeprefix("accuracy/") for name in rows[0] if name.startswith("accuracy/")]
    others = [name for name in tests if name != "in_dist"]
    for name, colour in zip(others, ["#55a868", "#c44e52", "#8172b3", "#937860"] * len(others), strict=False):
        label = f"accuracy {TEST_LABELS.get(name, f'on {name}')}, greedy"
        left.plot(*points(f"accuracy/{name}"), "s--", color=colour, label=label)
    left.set(xlabel="seconds of training (evaluation excluded)", ylabel="reward, accuracy")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend(frameon=False)
    bottom = 0.0
    for phase in PHASES:
        right.bar(["run"], [seconds[phase]], bottom=bottom, color=PHASE_COLOURS[phase], label=phase, width=0.5)
        bottom += seconds[phase]
    right.set(ylabel="seconds", title="time by phase", xlim=(-0.5, 0.5))
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
