"""The numbers of one arm: means over seeds, seconds by phase, pass@k, watch checks. Also which arm is the baseline."""

from __future__ import annotations

import math
import re

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import PHASES
from dash_exp.core.watch import CHECKS
from dash_exp.results import stats
from dash_exp.results.cells import Cell, Results
from dash_exp.results.stats import Estimate

BASE = "base"
SKIPPED = "optimizer/skipped_steps"
Seed = int | None


def by_seed(results: Results, arm: str, status: str | None = "done") -> dict[Seed, Cell]:
    """The cells of an arm with this status, or all of them if it is None. If a seed was run twice, the later run counts."""
    return {cell.seed: cell for cell in results.of_arm(arm, status)}


def per_seed(results: Results, arm: str, key: str) -> dict[Seed, float]:
    """A number of `result.json` by seed, for the done cells that have it. The key `kept` is the kept fraction of samples."""
    found = {seed: number(cell, key) for seed, cell in by_seed(results, arm).items()}
    return {seed: value for seed, value in found.items() if value is not None}


def over_seeds(results: Results, arm: str, key: str) -> Estimate | None:
    """The mean of one number over the done cells of an arm, with its interval over seeds."""
    return stats.mean_interval(list(per_seed(results, arm, key).values()))


def of_base(results: Results, key: str, arm: str | None = None) -> Estimate | None:
    """A number of the base model (`KEY/base` in `result.json`): the mean over all cells, or over the cells of one arm.

    None if no arm is given and the arms started from different models.
    """
    if arm is None and several_models(results):
        return None
    cells = results.cells if arm is None else results.of_arm(arm, None)
    return stats.mean_interval([value for cell in cells if (value := number(cell, f"{key}/base")) is not None])


def several_models(results: Results) -> bool:
    """Whether the cells started from more than one model, as in a sweep over model sizes."""
    models = (cell.config["model"] for cell in results.cells if cell.config.get("model"))
    return len({(str(model.get("path")), str(model.get("architecture"))) for model in models}) > 1


def number(cell: Cell, key: str) -> float | None:
    """A finite number of `result.json`; None if it is missing. The key `kept` is the kept fraction of the samples."""
    if key == "kept":
        kept, sampled = cell.result.get("completions/kept"), cell.result.get("completions/sampled")
        return kept / sampled if sampled and kept is not None else None
    value = cell.result.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def choose_baseline(results: Results, wanted: str | None) -> str | None:
    """The arm named `wanted`, else the baseline of the sweep's study, else the first arm. With a single arm: the base model.

    None without cells. Raises UserError for a name that matches no arm, or the start of several.
    """
    if wanted is None:
        only = len(results.arms) == 1 and not results.study.get("baseline")
        return BASE if only else results.baseline
    if wanted == BASE or wanted in results.arms:
        return wanted
    begin = [arm for arm in results.arms if arm.split(", ")[0] == wanted]
    if len(begin) == 1:
        return begin[0]
    wrong = "matches several arms" if begin else "is not the name of an arm"
    choices = "; ".join(f'"baseline={arm}"' for arm in [*(begin or results.arms), *([] if begin else [BASE])])
    raise UserError(f"baseline={wanted}", wrong, f"Use one of {choices}")


def watched(results: Results, arm: str) -> dict[str, int]:
    """In how many outer steps each check of the watch fired, summed over all cells of an arm, done or not.

    The key `optimizer/skipped_steps` holds how many optimizer steps were skipped. {} for runs without a watch.
    """
    cells = [cell.result for cell in results.of_arm(arm, None) if any(f"watch/{name}" in cell.result for name in CHECKS)]
    keys = {**{name: f"watch/{name}" for name in CHECKS}, SKIPPED: SKIPPED}
    return {name: sum(int(result.get(key) or 0) for result in cells) for name, key in keys.items()} if cells else {}


def first_fired(results: Results, arm: str) -> dict[str, int]:
    """The first outer step in which each check of the watch fired, over all cells of an arm. Without those that did not."""
    metrics = [cell.metrics for cell in results.of_arm(arm, None)]
    columns = {name: f"watch/{name}" for name in CHECKS}
    fired = {n: [int(s) for m in metrics if c in m for s in m.loc[m[c] > 0, "step"]] for n, c in columns.items()}
    return {name: min(steps) for name, steps in fired.items() if steps}


def phases(results: Results, arm: str) -> dict[str, float]:
    """Mean seconds by phase over the done cells of an arm, and `other`, the rest of the total. {} without cells."""
    means = {phase: over_seeds(results, arm, f"time/{phase}_s") for phase in PHASES}
    total = over_seeds(results, arm, "time/total_s")
    if total is None:
        return {}
    seconds = {phase: e.value if e else 0.0 for phase, e in means.items()}
    return seconds | {"other": max(0.0, total.value - sum(seconds.values()))}  # phases that overlap add up to more


def pass_at_k(results: Results, arm: str, test: str) -> dict[int, Estimate]:
    """pass@k by k, with its interval over seeds; the arm `base` is the base model. {} if it was not measured."""
    pattern = re.compile(rf"eval/{re.escape(test)}/pass@(\d+)/final")
    found = (pattern.fullmatch(key) for cell in results.cells for key in cell.result)
    ks = sorted({int(match[1]) for match in found if match})
    keys = {k: f"eval/{test}/pass@{k}" for k in ks}
    all_k = {k: of_base(results, key) if arm == BASE else over_seeds(results, arm, f"{key}/final") for k, key in keys.items()}
    return {k: e for k, e in all_k.items() if e is not None}
