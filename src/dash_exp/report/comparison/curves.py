"""Metrics of an arm against an axis (steps, seconds, tokens): a curve for each seed and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dash_exp.report.comparison.arms import by_seed
from dash_exp.results.cells import Cell, Results

GRID = 200  # points of a mean curve, at most


# Metrics of the training completions. An arm that learns from traces did not sample these itself.
OF_COMPLETIONS = ("reward/", "length/", "advantage/", "filter/")


Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y


@dataclass(frozen=True)
class Curve:
    """A metric against an axis: one line per seed, and their mean over the range that all seeds cover."""

    arm: str
    seeds: list[Points]
    mean: Points | None


def learns_from_traces(results: Results, arm: str) -> bool:
    """Whether an arm trains on traces of a data set or a teacher. Its completion metrics are then not those of the policy."""
    return any((cell.config.get("algo") or {}).get("train_sampler") for cell in results.of_arm(arm, None))


def curve(results: Results, arm: str, metric: str, axis: str, unfinished: bool = False) -> Curve | None:
    """The curve of an arm's done cells, with `unfinished` of all; None if nothing was measured or the axis does not change.

    For an arm that learns from traces, only metrics of its own policy have a curve, and none against tokens sampled.
    """
    if learns_from_traces(results, arm) and (metric.startswith(OF_COMPLETIONS) or axis == "sampled_tokens"):
        return None
    cells = by_seed(results, arm, None if unfinished else "done").values()
    lines = [points for cell in cells if (points := _points(cell, metric, axis)) is not None]
    return Curve(arm, lines, mean_line(lines)) if lines else None


def _points(cell: Cell, metric: str, axis: str) -> Points | None:
    if metric not in cell.metrics or axis not in cell.metrics:
        return None
    x, y = cell.metrics[axis].to_numpy(float), cell.metrics[metric].to_numpy(float)
    measured = np.isfinite(x) & np.isfinite(y)
    x, y = x[measured], y[measured]
    return (x, y) if len(x) and (len(x) == 1 or x[-1] > x[0]) else None


def mean_line(lines: Sequence[Points]) -> Points | None:
    """The mean of lines, interpolated onto a common grid over the range that all cover. None if there is no such range."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if low > high:
        return None
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) > GRID:
        grid = np.linspace(low, high, GRID)
    return grid, np.mean([np.interp(grid, x, y) for x, y in lines], axis=0)
