"""Completions of the same problems in each arm, read from the run folders, to compare side by side.

Where a reward is a sum of parts, wrong completions that it pays come first: they show what can be had without the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dash_exp.report import comparison
from dash_exp.results.cells import Cell, Results

PROBLEMS = 3
PER_ARM = 2  # completions of a problem
PAID = "paid_though_wrong"  # added to a record that was chosen for this
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

    The seed is the first one of which most arms recorded completions. Problems with wrong completions that are paid in most
    arms come first, then those whose completions differ in reward. Each arm has two completions, with different rewards if
    possible, and of the wrong ones the one that is paid most. (None, None, {}) if the arms have nothing in common.
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
            right = {arm: part_of_the_answer(done[arm][seed]) for arm in files}
            shared.sort(key=lambda problem: not any(_varied(of[problem]) for of in of_arm_at_step.values()))
            shared.sort(key=lambda p: -sum(paid_wrong(of[p], right[arm]) is not None for arm, of in of_arm_at_step.items()))
            chosen = {p: {arm: _two(of[p], right[arm]) for arm, of in of_arm_at_step.items()} for p in shared[:PROBLEMS]}
            if chosen:
                return seed, step, chosen
    return None, None, {}


def part_of_the_answer(cell: Cell) -> str:
    """The field of a record that says whether the answer is right, as in `reward/right`; "" if the reward has no parts."""
    part = (cell.config.get("reward") or {}).get("correct")
    return f"reward/{part}" if part else ""


def paid_wrong(records: list[Record], right: str) -> Record | None:
    """Of the wrong completions with a reward above 0 the one that has most; None if there is none."""
    graded = [r for r in records if right in r and isinstance(r.get("reward"), int | float)]
    return max((r for r in graded if r[right] < 1 and r["reward"] > 0), key=lambda record: record["reward"], default=None)


def _varied(records: list[Record]) -> bool:
    return len({record.get("reward") for record in records}) > 1


def _two(records: list[Record], right: str) -> list[Record]:
    """The wrong completion that is paid most, else the first one; and the first one with another reward, else another one."""
    paid = paid_wrong(records, right)
    first = paid or records[0]
    rest = [record for record in records if record is not first]
    other = [record for record in rest if record.get("reward") != first.get("reward")]
    return [{**first, PAID: True} if paid else first, *(other or rest)][:PER_ARM]


def shortened(text: str) -> str:
    """At most `CHARACTERS` of a completion. The middle is left out."""
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
