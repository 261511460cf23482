"""The results of one run or one evaluation as a printed table. Comparisons are in `report/`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dash_exp.core.metrics import PHASES
from dash_exp.core.watch import CHECKS
from dash_exp.core.words import duration

TEST_LABELS = {"in_dist": "in distribution", "out_dist": "out of distribution"}


def result_table(result: Mapping[str, Any]) -> str:
    """The table at the end of a run: accuracy, length, seconds by phase, counts."""

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
    other = "other (set-up, files)" if accounted <= total else "of which in parallel"
    lines.append(f"  {other:22}{abs(total - accounted):7.1f}s{100 * abs(1 - accounted / max(total, 1e-9)):7.0f}%")
    lines.append(f"completions {result['completions/sampled']:,} sampled, {result['completions/kept']:,} kept")
    if result["completions/sampled"] and not result["completions/kept"]:
        lines.append("no completion was trained on: the policy did not learn anything")
    if fired := fired_words(result):
        lines.append(f"watch: {fired}")
    failed = {name: result.get(name, 0) for name in ("score/timeouts", "score/errors", "eval/timeouts", "eval/errors")}
    if any(failed.values()):
        lines.append("gradings that timed out or failed: " + ", ".join(f"{n} {name}" for name, n in failed.items() if n))
    lines.append(f"tokens {result['tokens/sampled']:,} sampled, {result['tokens/trained']:,} trained on")
    return "\n".join(lines)


def fired_words(result: Mapping[str, Any]) -> str:
    """`nonfinite in 1 outer step, kl_blowup in 3; 2 optimizer steps skipped`; empty if no check of the watch fired."""
    counts = {name: n for name in CHECKS if (n := result.get(f"watch/{name}"))}
    said = [f"{name} in {n}{'' if i else ' outer step' + 's' * (n > 1)}" for i, (name, n) in enumerate(counts.items())]
    skipped = result.get("optimizer/skipped_steps") or 0
    left_out = [f"{skipped} optimizer step{'s' * (skipped > 1)} skipped"] if skipped else []
    return "; ".join([*([", ".join(said)] if said else []), *left_out])


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


def verdict_lines(claims: Path) -> list[str]:
    """The verdicts of a report, from its `claims.csv`: each claim and below it what was found. [] if there is no such file."""
    if not claims.is_file():
        return []
    with claims.open(encoding="utf-8", newline="") as file:
        return [line for row in csv.DictReader(file) for line in (f"{row['verdict']}: {row['claim']}", f"  {row['found']}")]


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if metric.endswith("tokens") else f"{100 * value:.1f}%"
