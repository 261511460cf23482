"""Figures of one run and of one evaluation. The figures of a comparison are in `report/figures.py`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dash_exp.core.metrics import PHASES
from dash_exp.results.summary import TEST_LABELS

PHASE_COLOURS = dict(zip(PHASES, ["#4c72b0", "#8172b3", "#dd8452", "#937860", "#c7c7c7"], strict=True))


def plot_pass_at_k(tests: Mapping[str, Mapping[str, Any]], k: Sequence[int], path: Path) -> None:
    """pass@k against k: a line per test set, with 95% intervals."""
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
    """Left: reward and accuracy against seconds of training. Right: seconds by phase, including evaluation."""
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
