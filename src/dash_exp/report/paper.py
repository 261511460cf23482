"""What the paper reports and what was measured here: changes against the baseline in percent, never absolute times.

`assets/paper.csv` holds tables 1 to 6 of arXiv 2505.17218. The `study.paper` section of a sweep names a table and gives the
method of each arm: `{table: 3, data: math, models: ..., steps: ..., methods: {"grpo": GRPO, "dash": DASH}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dash_exp.report import comparison
from dash_exp.report.comparison import BASE, Verdict
from dash_exp.results.cells import Results
from dash_exp.settings.claims import Claim

FILE = Path(__file__).parent.parent / "assets" / "paper.csv"
# A column of the table, its name in the report, and what corresponds to it here: a test set with a metric of it, or a time.
COLUMNS = {
    "time_h": ("training time", "", "time/elapsed_s"),
    "math_pct": ("MATH; here in distribution", "in_dist", "accuracy"),
    "gsm8k_pct": ("GSM8K; here out of distribution", "out_dist", "accuracy"),
    "pass1_pct": ("pass@1; here greedy, in distribution", "in_dist", "accuracy"),
    "pass8_pct": ("pass@8; here in distribution", "in_dist", "pass@8"),
}


@dataclass(frozen=True)
class Change:
    """The relative change of one quantity from the baseline to an arm: in the paper by model, and here. None: no number.

    `found`: the difference here with its interval, as the verdict on the claim that it is above 0, or of times that they are
    below those of the baseline.
    """

    arm: str
    method: str
    quantity: str
    by_model: dict[str, float | None]
    ours: float | None
    found: Verdict

    def way(self, model: str) -> str:
        """Whether the change here has the sign of the paper's for this model: same, opposite or undecided, where the interval
        here does not exclude 0. Empty where the paper has no change.
        """
        theirs = self.by_model.get(model)
        if not theirs:
            return ""
        rises = {"supported": not self.found.claim.is_ratio, "contradicted": self.found.claim.is_ratio}.get(self.found.word)
        if rises is None:
            return "undecided"
        return "same" if rises == (theirs > 0) else "opposite"


def read() -> pd.DataFrame:
    """The tables: columns table, method, model_b (billions of parameters), time_h, and accuracies in percent."""
    return pd.read_csv(FILE, comment="#")


def method_of(results: Results, arm: str, methods: Mapping[Any, str]) -> str | None:
    """The paper's method for an arm: by the name of the arm, its first word, or the value of a swept key. None: no method."""
    named = {str(key): str(method) for key, method in methods.items()}
    if arm == BASE:
        return named.get(BASE)
    cell = next(c for c in results.cells if results.arm(c) == arm)
    values = [cell.overrides.get(key, "") for key in results.swept]
    return next((named[word] for word in [arm, arm.split(",")[0], *values] if word in named), None)


def changes(results: Results, baseline: str | None) -> list[Change]:
    """The changes of every arm that the paper also has, for each quantity. [] if there is nothing to compare."""
    study = results.study.get("paper") or {}
    methods = study.get("methods") or {}
    reference = method_of(results, baseline, methods) if baseline is not None else None
    if reference is None:
        return []
    table = read()
    table = table[table["table"] == study.get("table")].set_index(["method", "model_b"])
    found = []
    for arm in [*([BASE] if baseline != BASE else []), *results.arms]:
        method = method_of(results, arm, methods)
        against = BASE if baseline == BASE else results.baseline_of(arm, str(baseline)) if arm != BASE else str(baseline)
        if method is None or arm == against or method not in table.index.get_level_values(0):
            continue
        for column, (quantity, test, metric) in COLUMNS.items():
            by_model = {f"{size:g}B": _reported(table, method, reference, size, column) for size in models(table)}
            if any(change is not None for change in by_model.values()):
                ours = _measured(results, arm, against, test, metric)
                judged = comparison.judged(results, claim_of(test, metric), arm, against)
                found.append(Change(arm, method, quantity, by_model, ours, judged))
    return found


def claim_of(test: str, metric: str) -> Claim:
    """That a metric of a test set is higher, or that a time (no test set) is shorter."""
    return Claim((), (), "higher", 0.0, metric, test) if test else Claim((), (), "faster", 1.0, metric)


def models(table: pd.DataFrame) -> list[float]:
    """The model sizes of a table, in billions."""
    return sorted(set(table.index.get_level_values(1)))


def _reported(table: pd.DataFrame, method: str, reference: str, size: float, column: str) -> float | None:
    if (method, size) not in table.index or (reference, size) not in table.index:
        return None
    ours, theirs = table.loc[(method, size), column], table.loc[(reference, size), column]
    return None if pd.isna(ours) or pd.isna(theirs) else float(ours / theirs - 1)


def _measured(results: Results, arm: str, baseline: str, test: str, metric: str) -> float | None:
    """The change measured here, over the seeds and problems of both; for times, the geometric mean of the ratios by seed."""
    if not test:
        ratio = None if BASE in (arm, baseline) else comparison.time_ratio(results, arm, baseline, metric)
        return None if ratio is None else ratio.value - 1
    if arm != BASE:
        return comparison.relative_change(results, arm, baseline, test, metric)
    gain = comparison.relative_change(results, baseline, BASE, test, metric)  # the way back
    return None if gain is None or gain <= -1 else 1 / (1 + gain) - 1
