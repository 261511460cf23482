"""Completions of the same problems in each arm, read from the run folders, to compare side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dash_exp.report import comparison
from dash_exp.results.cells import Cell, Results

PROBLEMS = 3
PER_ARM = 2  # completions of a problem
CHARACTERS = 1500  # of a completion

Record = Mapping[str, Any]


def steps(cell: Cell) -> dict[int, Path]:
    """The files of completions that a cell recorded, by outer step."""
    files = sorted((cell.folder / "completions").glob("step_*.jsonl"))
    return {int(file.stem.removeprefix("step_")): file for file in files if file.stem.removeprefix("step_").isdecimal()}


def read(file: Path) -> dict[str, list[Record]]:
    """Completions by problem, in the order of the file. An incomplete last line is skipped."""
    found: dict[str, list[Record]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.setdefault(str(record.get("problem")), []).append(record)
    return found


def choose(results: Results) -> tuple[int | None, int | None, dict[str, dict[str, list[Record]]]]:
    """(seed, outer step, problem -> arm -> completions): a few problems of the last step that all arms recorded.

    The seed is the first one of which most arms recorded completions. Problems whose completions differ in reward come first.
    Each arm has two completions, with different rewards if possible. (None, None, {}) if the arms have nothing in common.
    """
    done = {arm: comparison.by_seed(results, arm) for arm in results.arms}
    recorded = {arm: {seed: found for seed, cell in of_arm.items() if (found := steps(cell))} for arm, of_arm in done.items()}
    seeds = dict.fromkeys(seed for of_arm in recorded.values() for seed in of_arm)
    for seed in sorted(seeds, key=lambda s: -sum(s in of_arm for of_arm in recorded.values())):
        files = {arm: of_arm[seed] for arm, of_arm in recorded.items() if seed in of_arm}
        common = set.intersection(*(set(found) for found in files.values())) if files else set()
        for step in sorted(common, reverse=True)[:1]:
            of_arm_at_step = {arm: read(found[step]) for arm, found in files.items()}
            first, *others = of_arm_at_step.values()
            shared = [problem for problem in first if all(problem in other for other in others)]
            shared.sort(key=lambda problem: not any(_varied(found[problem]) for found in of_arm_at_step.values()))
            chosen = {p: {arm: _two(found[p]) for arm, found in of_arm_at_step.items()} for p in shared[:PROBLEMS]}
            if chosen:
                return seed, step, chosen
    return None, None, {}


def _varied(records: list[Record]) -> bool:
    return len({record.get("reward") for record in records}) > 1


def _two(records: list[Record]) -> list[Record]:
    """The first completion, and the first one with another reward, else the second one."""
    other = [record for record in records[1:] if record.get("reward") != records[0].get("reward")]
    return [records[0], *(other or records[1:])][:PER_ARM]


def shortened(text: str) -> str:
    """At most `CHARACTERS` of a completion. The middle is left out."""
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
