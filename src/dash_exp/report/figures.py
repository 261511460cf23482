"""The figures of a comparison, each as SVG and PNG. One small panel per file, so that a page can arrange them for its width.

An arm has the same colour and line in every figure. The baseline is dark grey, the base model light grey; the other colours
are those of Okabe and Ito (the last one is of Tol), which colour-blind readers can distinguish.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from dash_exp.report.comparison import BASE, Curve, Difference
from dash_exp.results.plots import PHASE_COLOURS
from dash_exp.results.stats import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
BASELINE, BASE_MODEL, OTHER = "#333333", "#999999", "#e5e5e5"
VERDICTS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#777777"}
WIDTH_IN = 4.2
LONGEST = 50  # characters of a label inside of a panel
RC: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "svg.hashsalt": "dash_exp",  # the same figure gives the same file
    "text.parse_math": False,  # an arm may have a $ in its name
    "svg.fonttype": "none",  # text stays text: half the size, and it can be searched
    "figure.dpi": 100,
}

Dash = Literal["-", "--", ":"]
Style = tuple[str, Dash]  # a colour and a line style
DASHES: tuple[Dash, ...] = ("-", "--", ":")
MARKERS: dict[Dash, str] = {"-": "o", "--": "s", ":": "^"}


def counts(value: float, position: float | None = None) -> str:
    """Tick labels: `0.5 -> "0.5"`, `20000 -> "20k"`."""
    return ticker.EngFormatter(sep="")(value) if abs(value) >= 10_000 else f"{value:g}"


def styles(arms: Sequence[str], baseline: str | None) -> dict[str, Style]:
    """Colour and line style of each arm. With more arms than colours the line style changes."""
    found: dict[str, Style] = {BASE: (BASE_MODEL, "-")}
    others = [arm for arm in arms if arm != baseline]
    for i, arm in enumerate(others):
        found[arm] = (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
    if baseline in arms:
        found[str(baseline)] = (BASELINE, "-")
    return found


def canvas(height_in: float) -> tuple[Canvas, Axes]:
    """An empty panel with the width and style that all figures share."""
    with rc_context(RC):
        figure = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")  # not pyplot: a notebook keeps its backend
        return figure, figure.subplots()


def named(axes: Axes, title: str, xlabel: str) -> None:
    """Set title and x label."""
    axes.set_title(title, loc="left", fontsize=10, color="#1f2328")
    axes.set_xlabel(xlabel, color="#555555")
    axes.set_axisbelow(True)


def save(figure: Canvas, path: Path) -> None:
    """Write the files `path`.svg and `path`.png."""
    with rc_context(RC):
        svg = path.with_name(f"{path.name}.svg")
        figure.savefig(svg, metadata={"Date": None}, transparent=True)
        text = svg.read_text(encoding="utf-8")
        svg.write_text(re.sub(r"(\.\d\d)\d+", r"\1", text), encoding="utf-8")  # a precision of 0.01 point is enough
        figure.set_layout_engine("none")  # keep the layout of the first file: computing it takes most of the time
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)


def legend(looks: Mapping[str, Style], path: Path) -> None:
    """The arms with their colours, as a figure of its own."""
    lines = [Line2D([], [], color=colour, linestyle=dash, linewidth=2) for colour, dash in looks.values()]
    with rc_context(RC):
        figure = Canvas(figsize=(WIDTH_IN, 0.24 * len(looks) + 0.1))
        figure.legend(lines, list(looks), loc="center left", frameon=False)
    save(figure, path)


def curves(found: Sequence[Curve], looks: Mapping[str, Style], title: str, xlabel: str, percent: bool, path: Path) -> None:
    """A thick line for the mean of each arm, thin lines for its seeds."""
    figure, axes = canvas(2.6)
    scale = 100 if percent else 1
    for line in found:
        colour, dash = looks[line.arm]
        if len(line.seeds) > 1 or line.mean is None:
            for x, y in line.seeds:
                axes.plot(x, scale * y, color=colour, linestyle=dash, linewidth=0.7, alpha=0.35)
        if line.mean is not None:
            x, y = line.mean
            axes.plot(x, scale * y, color=colour, linestyle=dash, linewidth=1.8, marker="o" if len(x) < 12 else None, ms=3)
    named(axes, title, xlabel)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(counts)
    save(figure, path)


def differences(found: Sequence[Difference], looks: Mapping[str, Style], title: str, xlabel: str, path: Path) -> None:
    """Two intervals per arm: over seeds (thick) and over problems (thin, hollow). With one seed, only that over problems."""
    figure, axes = canvas(0.45 * len(found) + 1.3)
    seeds = any(d.over_seeds is not None and d.over_seeds.n > 1 for d in found)
    for row, d in enumerate(reversed(found)):
        look = looks[d.arm]
        if seeds:
            _interval(axes, d.over_seeds, row + 0.13, look, width=2.4, face=look[0])
        _interval(axes, d.over_problems, row - 0.13 * seeds, look, width=1.0, face="white")
    axes.axvline(0, color="#888888", linewidth=1)
    named(axes, title, xlabel)
    axes.set(ylim=(-0.6, len(found) - 0.4))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.0), max(high, 1.0))  # a tiny difference must not look large
    axes.set_yticks(range(len(found)), [d.arm for d in reversed(found)])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    handles = [
        Line2D([], [], color="#555555", linewidth=2.4, marker="o", ms=5),
        Line2D([], [], color="#555555", linewidth=1, marker="o", ms=5, markerfacecolor="white"),
    ]
    labels = ["over seeds", "over problems"]
    start = 0 if seeds else 1
    figure.legend(handles[start:], labels[start:], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save(figure, path)


def _interval(axes: Axes, e: Estimate | None, y: float, look: Style, width: float, face: str) -> None:
    """A point in percent with its interval; without ends of the interval only the point."""
    if e is None:
        return
    colour, dash = look
    if e.low is not None and e.high is not None:
        axes.plot([100 * e.low, 100 * e.high], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    axes.plot([100 * e.value], [y], MARKERS[dash], color=colour, ms=5, markerfacecolor=face)


def tradeoff(
    points: Mapping[str, tuple[float, Estimate]],
    base: float | None,
    looks: Mapping[str, Style],
    title: str,
    path: Path,
    xlabel: str = "seconds of training (mean over seeds)",
) -> None:
    """Final accuracy against seconds of training: a point per arm with its interval over seeds (cut at 0 and 100%)."""
    figure, axes = canvas(2.9)
    if base is not None:
        axes.axhline(100 * base, color=BASE_MODEL, linewidth=1, linestyle=":")
        place: Any = {"xycoords": ("axes fraction", "data"), "va": "bottom", "ha": "right", "color": "#777777", "zorder": 5}
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
        axes.annotate("base model", (0.99, 100 * base), size=8, bbox=behind, **place)
    for arm, (seconds, e) in points.items():
        colour, dash = looks[arm]
        if e.low is not None and e.high is not None:
            axes.plot([seconds] * 2, [100 * max(0.0, e.low), 100 * min(1.0, e.high)], color=colour, linewidth=1.4)
        axes.plot([seconds], [100 * e.value], MARKERS[dash], color=colour, ms=7, alpha=0.85)
    named(axes, title, xlabel)
    axes.set_xlim(0, 1.12 * max(seconds for seconds, _ in points.values()) or 1)
    axes.xaxis.set_major_formatter(counts)
    save(figure, path)


def time_by_phase(
    seconds: Mapping[str, Mapping[str, float]], title: str, path: Path, xlabel: str = "seconds (mean over seeds)"
) -> None:
    """A bar per arm, stacked by phase."""
    figure, axes = canvas(0.34 * len(seconds) + 1.5)
    arms = list(seconds)[::-1]
    left = [0.0] * len(arms)
    for phase, colour in (PHASE_COLOURS | {"other": OTHER}).items():
        width = [seconds[arm].get(phase, 0.0) for arm in arms]
        axes.barh(arms, width, left=left, color=colour, label=phase, height=0.62)
        left = [a + b for a, b in zip(left, width, strict=True)]
    named(axes, title, xlabel)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(counts)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8, handlelength=1, columnspacing=0.9)
    save(figure, path)


def pass_at_k(found: Mapping[str, Mapping[int, Estimate]], looks: Mapping[str, Style], title: str, path: Path) -> None:
    """pass@k against k: a line per arm and one for the base model, with intervals over seeds."""
    figure, axes = canvas(2.6)
    for arm, by_k in found.items():
        colour, dash = looks[arm]
        axes.plot(list(by_k), [100 * e.value for e in by_k.values()], color=colour, linestyle=dash, marker="o", ms=4)
        ends = [(k, 100 * e.low, 100 * e.high) for k, e in by_k.items() if e.low is not None and e.high is not None]
        if arm != BASE and len(ends) == len(by_k) > 1:
            lows, highs = [low for _, low, _ in ends], [high for _, _, high in ends]
            axes.fill_between(list(by_k), lows, highs, color=colour, alpha=0.12, linewidth=0)
    ks = sorted({k for by_k in found.values() for k in by_k})
    if len(ks) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    named(axes, title, "k")
    save(figure, path)


@dataclass(frozen=True)
class Claimed:
    """A row of `claims`: the two arms, the quantity, what was found, and the values that the claim allows."""

    arms: str
    quantity: str
    found: Estimate
    region: tuple[float, float]
    verdict: str


def claims(rows: Sequence[Claimed], xlabel: str, is_ratio: bool, path: Path) -> None:
    """A forest plot: a point with its interval for each claim, over a band where the claim is true. Ratios on a log scale."""
    figure, axes = canvas(0.56 * len(rows) + 0.75)
    limits = claim_limits(rows, is_ratio)
    axes.set(xlim=limits, ylim=(-0.45, len(rows) - 0.2))
    if is_ratio:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.axvline(1 if is_ratio else 0, color="#888888", linewidth=1)
    for y, row in enumerate(reversed(rows)):
        colour = VERDICTS[row.verdict]
        inside = [min(max(end, limits[0]), limits[1]) for end in row.region]
        axes.barh([y], inside[1] - inside[0], left=inside[0], height=0.34, color="#009E73", alpha=0.13, linewidth=0)
        for end in row.region:
            if limits[0] < end < limits[1]:
                axes.plot([end, end], [y - 0.17, y + 0.17], color="#009E73", linewidth=1.2)
        _claim_interval(axes, row.found, y, colour, limits)
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
        place: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 8, "bbox": behind}
        name = f"{row.arms}: {row.quantity}"
        name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"  # the verdict stands on the same line
        axes.text(0.0, y + 0.36, name, ha="left", color="#1f2328", **place)
        axes.text(1.0, y + 0.36, row.verdict, ha="right", color=colour, weight="bold", **place)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    named(axes, "green: what is claimed", xlabel)
    save(figure, path)


def claim_limits(rows: Sequence[Claimed], is_ratio: bool) -> tuple[float, float]:
    """The range of the axis: all estimates and ends of claims, and of longer intervals as much again on each side."""
    scale, back = (np.log, np.exp) if is_ratio else (np.array, np.array)
    least = scale(1.25) if is_ratio else 1e-9
    shown = [row.found.value for row in rows] + [end for row in rows for end in row.region if np.isfinite(end)]
    points = scale(np.array([x for x in [*shown, 1.0 if is_ratio else 0.0] if x > 0 or not is_ratio]))
    ends = [end for row in rows for end in (row.found.low, row.found.high) if end is not None]
    reach = max(float(np.ptp(points)), least)
    low = max(min([points.min(), *(scale(e) for e in ends)]), points.min() - reach)
    high = min(max([points.max(), *(scale(e) for e in ends)]), points.max() + reach)
    pad = 0.06 * (high - low) or least
    return float(back(low - pad)), float(back(high + pad))


def _claim_interval(axes: Axes, e: Estimate, y: float, colour: str, limits: tuple[float, float]) -> None:
    """A point with its interval; an arrow head where the interval goes on beyond the axis."""
    if e.low is not None and e.high is not None:
        axes.plot([max(e.low, limits[0]), min(e.high, limits[1])], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        for beyond, at, marker in ((e.low < limits[0], limits[0], "<"), (e.high > limits[1], limits[1], ">")):
            if beyond:
                axes.plot([at], [y], marker, color=colour, ms=6, clip_on=False)
    axes.plot([e.value], [y], "o", color=colour, ms=5, markeredgecolor="white", markeredgewidth=0.6)
