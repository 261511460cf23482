"""What a reader of the report should know first: differences that were not swept, missing files and seeds, failed gradings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dash_exp.report import comparison, differing
from dash_exp.results.cells import Results
from dash_exp.results.problems import sets_that_differ

LIMITS_OF_GRADING = ("timeout_s", "workers", "memory_mb", "processes", "isolation", "device", "max_tokens")
FAILED_GRADINGS = ("score/timeouts", "score/errors", "eval/timeouts", "eval/errors")


def warnings(results: Results) -> list[str]:
    """Sentences, the most serious first. None of them stops the comparison."""
    return [
        *unexplained(results),
        *_sizes(results),
        *_environment(results),
        *_taken(results),
        *_missing(results),
        *_seeds(results),
        *_evaluation(results),
        *_problems(results),
        *_graders(results),
        *_gradings(results),
        *_watches(results),
    ]


def unexplained(results: Results) -> list[str]:
    """Settings that differ between cells although no swept setting changes them.

    If an override could not be tried, everything below a swept key counts as explained.
    """
    differs = differing.settings(results)
    if not differs:
        return []
    known, untried = differing.explained(results)
    parents = results.swept if untried else []
    said = []
    extra = {key: by_arm for key, by_arm in differs.items() if key not in known and not differing.under(key, parents)}
    for key, by_arm in extra.items():
        said.append(
            f"{key} differs between cells but was not swept ({differing.by_value(by_arm)}). "
            "So the differences are not due to the swept settings alone."
        )
    if untried:
        said.append(f"It could not be checked which settings these overrides change: {'; '.join(untried)}.")
    return said


def _sizes(results: Results) -> list[str]:
    groups = {"parameters": "model", "train_problems": "data"}
    differs, keys = differing.sizes(results), differing.settings(results)
    return [
        f"{size} differs between cells ({differing.by_value(differs[size])}), "
        f"although the {group} settings are equal: files have changed between the runs."
        for size, group in groups.items()
        if size in differs and not any(differing.under(key, [group]) for key in keys)
    ]


def _environment(results: Results) -> list[str]:
    said = []
    commits = _distinct(results, lambda c: c.result.get("git"))
    if len(commits) > 1:
        said.append(f"Cells ran on different git revisions: {_listed(commits)}.")
    elif any(str(commit).endswith("+changes") for commit in commits):
        said.append("The source had uncommitted changes, so the recorded git revision does not reproduce it exactly.")
    devices = _distinct(results, lambda c: re.sub(r", \d+ thread.*", "", str(c.result.get("device") or "")) or None)
    threads = _distinct(results, lambda c: (re.findall(r"(\d+) thread", str(c.result.get("device") or "")) or [None])[0])
    if len(devices) > 1:
        said.append(f"Cells ran on different devices, so their times are not comparable: {_listed(devices)}.")
    if len(threads) > 1:
        said.append(f"Cells had different numbers of torch threads, so their times are not comparable: {_listed(threads)}.")
    return said


def _taken(results: Results) -> list[str]:
    """Cells that were run for another sweep."""
    sweeps = _distinct(results, lambda c: c.result.get("taken_from"))
    many = sum(sweeps.values())
    return [f"{cells_of(many)} {'was' if many == 1 else 'were'} run for another sweep: {_listed(sweeps)}."] if sweeps else []


def _distinct(results: Results, value: Any) -> dict[str, int]:
    """Values of the cells with the number of cells that have each; None is not counted."""
    found: dict[str, int] = {}
    for cell in results.cells:
        if (v := value(cell)) is not None:
            found[str(v)] = found.get(str(v), 0) + 1
    return found


def cells_of(count: int, which: str = "") -> str:
    """`1 -> "1 cell"`, `2, "done " -> "2 done cells"`"""
    return f"{count} {which}cell{'' if count == 1 else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{value[:12] if re.match('[0-9a-f]{40}', value) else value} ({cells_of(n)})" for value, n in counts.items()
    )


def _missing(results: Results) -> list[str]:
    """Files that done cells should have but do not."""
    lost = {
        "config.yaml": [c for c in results.cells if c.status == "done" and not c.config],
        "metrics.csv": [c for c in results.cells if c.status == "done" and c.metrics.empty],
        "problems.csv": [c for c in results.cells if c.status == "done" and c.problems.empty],
    }
    return [
        f"{file} is missing or unreadable in {cells_of(len(cells), 'done ')}. What needs this file does not include them."
        for file, cells in lost.items()
        if cells
    ]


def _seeds(results: Results) -> list[str]:
    said = []
    undone = [cell for cell in results.cells if cell.status != "done"]
    if undone:
        said.append(f"{len(undone)} of {len(results.cells)} cells are not done. The numbers include only done cells.")
    seeds = {arm: list(comparison.by_seed(results, arm)) for arm in results.arms}
    if len({tuple(found) for found in seeds.values()}) > 1:
        words = differing.by_value({arm: ", ".join(map(str, found)) or "none" for arm, found in seeds.items()})
        said.append(f"The arms have different seeds done ({words}). Differences use the seeds that both arms have.")
    if max((len(found) for found in seeds.values()), default=0) == 1:
        said.append("There is only one seed, so the variation between seeds is unknown.")
    double = [arm for arm in results.arms if len(results.of_arm(arm)) > len(seeds[arm])]
    if double:
        said.append(f"A seed was run more than once in {', '.join(double)}. The last of these runs counts.")
    return said


def _evaluation(results: Results) -> list[str]:
    said = []
    for test in results.tests:
        problems = {frozenset(found) for cell in results.cells if len(found := comparison.solved(cell, test, "final").index)}
        if len(problems) > 1:
            said.append(
                f"Not all cells were tested on the same problems of {test}. Differences, with their p values, use the problems "
                "that both cells of a pair have. Accuracies, lengths, pass@k, curves and times to the target are over all "
                "problems of each cell, so they do not compare the arms."
            )
        base = _distinct(results, lambda c, t=test: comparison.number(c, f"accuracy/{t}/base"))
        if len(base) > 1 and len(problems) <= 1 and not comparison.several_models(results):
            shown = ", ".join(f"{100 * float(value):.1f}% ({cells_of(n)})" for value, n in base.items())
            cause = "The runs were graded differently" if _several_graders(results, test) else "The runs started differently"
            said.append(f"The base model's accuracy on {test} differs between cells: {shown}. {cause}.")
    return said


def _problems(results: Results) -> list[str]:
    """Sets of problems that have changed between the cells, by their digests."""
    changed = {f"data.tests.{test}" for cell in results.cells for test, _ in cell.changed}
    by_settings = any(differing.under(key, ["data", "eval.limit"]) for key in differing.settings(results))
    others = [] if by_settings else sets_that_differ([cell.result for cell in results.cells])
    return [
        f"{name} had other problems in some cells: its data has changed between the runs."
        + (" Differences leave the changed problems out." if name in changed else "")
        for name in sorted(changed.union(others))
    ]


def _graders(results: Results) -> list[str]:
    """Test sets that were not graded by one reward in all cells: by the part of a sum that says what is correct."""
    said = []
    for test in results.tests:
        found = {arm: [grader(cell.config, test) for cell in results.cells if results.arm(cell) == arm] for arm in results.arms}
        if _several_graders(results, test):
            names = {arm: " | ".join(dict.fromkeys(_name(one) for one in of_arm if one)) for arm, of_arm in found.items()}
            said.append(
                f"{test} was graded by rewards with different settings ({differing.by_value(names)}). Where these differ in "
                "what is correct, its accuracies do not compare the arms. "
                f"+reward@data.tests.{test}.reward=NAME gives it one reward in all."
            )
    return said


def _several_graders(results: Results, test: str) -> bool:
    every = [one for cell in results.cells if (one := grader(cell.config, test))]
    return any(one != every[0] for one in every)


def grader(config: Mapping[str, Any], test: str) -> Mapping[str, Any]:
    """The settings by which a run tells correct completions of a test set, without limits; empty where they are not known.

    They are those of the reward that the test set brings, or else of the run's; of a sum of rewards those of one part.
    """
    own = ((config.get("data") or {}).get("tests") or {}).get(test) or {}
    reward: Mapping[str, Any] = own.get("reward") or config.get("reward") or {}
    while (decides := (reward.get("parts") or {}).get(reward.get("correct"))) is not None:
        reward = decides
    return {key: value for key, value in reward.items() if key not in LIMITS_OF_GRADING}


def _name(reward: Mapping[str, Any]) -> str:
    return str(reward.get("_target_")).rpartition(".")[2]


def _gradings(results: Results) -> list[str]:
    counts = {key: sum(cell.result.get(key) or 0 for cell in results.cells) for key in FAILED_GRADINGS}
    words = {"score/timeouts": "time-outs", "score/errors": "errors", "eval/timeouts": "time-outs", "eval/errors": "errors"}
    said = [f"{n} {words[key]} in {'training' if key.startswith('score') else 'evaluation'}" for key, n in counts.items() if n]
    return [f"Gradings that timed out or failed count as wrong: {', '.join(said)}."] if said else []


def _watches(results: Results) -> list[str]:
    """Optimizer steps that the watch skipped, and runs that it stopped."""
    skipped = {arm: n for arm in results.arms if (n := comparison.watched(results, arm).get(comparison.SKIPPED))}
    said = []
    if skipped:
        words = ", ".join(f"{n} in {arm}" for arm, n in skipped.items())
        said.append(f"The watch skipped optimizer steps because a check fired: {words}. These arms took fewer optimizer steps.")
    stopped = [(results.arm(cell), cell.seed, by) for cell in results.cells if (by := cell.result.get("watch/stopped_by"))]
    if stopped:
        words = "; ".join(f"{arm}, seed {seed} by {by}" for arm, seed, by in stopped)
        said.append(f"The watch stopped {cells_of(len(stopped))}: {words}.")
    return said
