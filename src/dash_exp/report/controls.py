"""What differed between the arms beside what was meant to differ, and everything else that a reader has to be warned of."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dash_exp.commands import cli
from dash_exp.core.words import first_line
from dash_exp.report import comparison
from dash_exp.results.cells import Cell, Results
from dash_exp.settings.overrides import number_of_kl
from dash_exp.training.budget import LIMITS

# These name a run or its noise; a sweep changes them on purpose.
NAMES = ("seed", "name", "experiment", "study", "objective", "hydra", "logger", "completions_every", "table_rows")
FAILED_GRADINGS = ("score/timeouts", "score/errors", "eval/timeouts", "eval/errors")
Flat = dict[str, Any]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Flat:
    """`{"a": {"b": 1}, "c": [2]} -> {"a.b": 1, "c": [2]}`. Lists are values."""
    found: Flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def under(key: str, parents: Iterable[str]) -> bool:
    """Whether a dotted key is one of `parents` or below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def differing(results: Results) -> dict[str, dict[str, str]]:
    """The settings in which any two cells differ, seed and names aside: key -> arm -> its value, or values."""
    of_arm: dict[str, list[Flat]] = {arm: [] for arm in results.arms}
    for cell in results.cells:
        if cell.config:
            of_arm[results.arm(cell)].append(flat(cell.config))
    every = [config for configs in of_arm.values() for config in configs]
    keys = dict.fromkeys(key for config in every for key in config if not under(key, NAMES))
    return {
        key: {arm: " | ".join(dict.fromkeys(_shown(c, key) for c in configs)) for arm, configs in of_arm.items() if configs}
        for key in keys
        if len({_shown(config, key) for config in every}) > 1
    }


def folded(differs: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """For readers: of a part that some arms have and others do not, only what it is. `_partial_` says nothing."""
    parents = [key for key in differs if any(other.startswith(f"{key}.") for other in differs)]
    shown = {key: dict(v) for key, v in differs.items() if not key.endswith("_partial_") and not _below(key, parents)}
    for parent in set(parents) & set(shown):
        parts = differs.get(f"{parent}._target_", {})
        shown[parent] |= {arm: parts.get(arm, "set") for arm, value in shown[parent].items() if value == "-"}
    return shown


def _below(key: str, parents: Iterable[str]) -> bool:
    return any(key.startswith(f"{parent}.") for parent in parents)


def _shown(config: Flat, key: str) -> str:
    if key not in config:
        return "-"
    return "null" if config[key] is None else str(config[key])


def explained(results: Results) -> tuple[set[str], list[str]]:
    """The settings that the swept keys change, each tried by itself in this checkout; and what could not be tried, and why.

    A swept group that could not be tried explains all that is below it.
    """
    keys = set(results.swept)
    untried: list[str] = []
    if any((cell.config.get("budget") or {}).get("match") for cell in results.cells):
        keys |= {f"budget.{limit}" for limit in LIMITS}
    tried = [f"{key}={value}" for key in results.swept for value in _values(results, key)]
    if not tried:
        return keys, untried
    try:
        default = _composed()
    except Exception as error:  # a report must come out whatever became of the checkout since
        return keys, [f"the configuration of this checkout ({first_line(str(error)) or type(error).__name__})"]
    for override in tried:
        try:
            changed = _composed(*number_of_kl([override]))
        except Exception as error:
            untried.append(f"{override} ({first_line(str(error)) or type(error).__name__})")
            continue
        keys |= {key for key in default.keys() | changed.keys() if _shown(default, key) != _shown(changed, key)}
    return keys, untried


@functools.lru_cache(maxsize=256)
def _composed(*overrides: str) -> Flat:
    return flat(cli.settings(overrides))


def _values(results: Results, key: str) -> list[str]:
    return list(dict.fromkeys(c.overrides[key] for c in results.cells if key in c.overrides))


def sizes(results: Results) -> dict[str, dict[str, str]]:
    """The derived sizes in which cells differ: size -> arm -> its value, or values."""
    keys = dict.fromkeys(key for cell in results.cells for key in cell.result if key.startswith("sizes/"))
    found = {
        key.removeprefix("sizes/"): {
            arm: " | ".join(dict.fromkeys(str(c.result[key]) for c in results.of_arm(arm, None) if key in c.result))
            for arm in results.arms
        }
        for key in keys
    }
    return {size: by_arm for size, by_arm in found.items() if len({v for v in by_arm.values() if v}) > 1}


def warnings(results: Results) -> list[str]:
    """Sentences, the gravest first. None of them stops a comparison; each says what it rests on."""
    return [
        *unexplained(results),
        *_sizes(results),
        *_environment(results),
        *_missing(results),
        *_seeds(results),
        *_evaluation(results),
        *_gradings(results),
        *_watches(results),
    ]


def unexplained(results: Results) -> list[str]:
    """Settings that differ between cells though nothing that was swept changes them."""
    differs = differing(results)
    if not differs:
        return []
    known, untried = explained(results)
    parents = results.swept if untried else []
    said = []
    extra = {key: by_arm for key, by_arm in differs.items() if key not in known and not under(key, parents)}
    for key, by_arm in extra.items():
        said.append(
            f"More differs than was swept: {key} ({by_value(by_arm)}). The comparison is not of the swept settings alone."
        )
    if untried:
        said.append(f"What the swept settings change could not be checked for {'; '.join(untried)}.")
    return said


def by_value(of_arm: Mapping[str, str]) -> str:
    """`{"dash": "5", "grpo": "1", "rloo": "1", "no_gf": "1"} -> "5 in dash; 1 in all others"`"""
    arms: dict[str, list[str]] = {}
    for arm, value in of_arm.items():
        if value:
            arms.setdefault(value, []).append(arm)
    in_order = sorted(arms.items(), key=lambda item: len(item[1]))
    rest = len(in_order) > 1 and len(in_order[-1][1]) > 2
    words = [f"{value} in {', '.join(names)}" for value, names in (in_order[:-1] if rest else in_order)]
    return "; ".join([*words, *([f"{in_order[-1][0]} in all others"] if rest else [])])


def _sizes(results: Results) -> list[str]:
    groups = {"parameters": "model", "train_problems": "data"}
    differs, keys = sizes(results), differing(results)
    return [
        f"{size} differs between cells ({by_value(differs[size])}), "
        f"with the same {group} settings: files have changed between runs."
        for size, group in groups.items()
        if size in differs and not any(under(key, [group]) for key in keys)
    ]


def _environment(results: Results) -> list[str]:
    said = []
    commits = _distinct(results, lambda c: c.result.get("git"))
    if len(commits) > 1:
        said.append(f"Cells ran on different git revisions: {_listed(commits)}.")
    elif any(str(commit).endswith("+changes") for commit in commits):
        said.append("The source had changes that are not in the git revision: it cannot be checked out again.")
    devices = _distinct(results, lambda c: re.sub(r", \d+ thread.*", "", str(c.result.get("device") or "")) or None)
    threads = _distinct(results, lambda c: (re.findall(r"(\d+) thread", str(c.result.get("device") or "")) or [None])[0])
    if len(devices) > 1:
        said.append(f"Cells ran on different devices, so their seconds do not compare: {_listed(devices)}.")
    if len(threads) > 1:
        said.append(f"Cells had different numbers of torch threads, so their seconds do not compare: {_listed(threads)}.")
    return said


def _distinct(results: Results, value: Any) -> dict[str, int]:
    """Values of cells with how many have each; None is no value."""
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
    """Files that done cells should have."""
    lost = {
        "config.yaml": [c for c in results.cells if c.status == "done" and not c.config],
        "metrics.csv": [c for c in results.cells if c.status == "done" and c.metrics.empty],
        "problems.csv": [c for c in results.cells if c.status == "done" and c.problems.empty],
    }
    return [
        f"{file} is missing or unreadable in {cells_of(len(cells), 'done ')}: what the report takes from it is without them."
        for file, cells in lost.items()
        if cells
    ]


def _seeds(results: Results) -> list[str]:
    said = []
    undone = [cell for cell in results.cells if cell.status != "done"]
    if undone:
        said.append(f"{len(undone)} of {len(results.cells)} cells are not done; only done cells are in the numbers.")
    seeds = {arm: list(comparison.by_seed(results, arm)) for arm in results.arms}
    if len({tuple(found) for found in seeds.values()}) > 1:
        words = by_value({arm: ", ".join(map(str, found)) or "none" for arm, found in seeds.items()})
        said.append(f"The arms have different seeds done ({words}). Differences use the seeds that both arms have.")
    if max((len(found) for found in seeds.values()), default=0) == 1:
        said.append("One seed: nothing here says how much another seed would have changed.")
    double = [arm for arm in results.arms if len(results.of_arm(arm)) > len(seeds[arm])]
    if double:
        said.append(f"A seed was run more than once in {', '.join(double)}; of those runs the last one counts.")
    return said


def _evaluation(results: Results) -> list[str]:
    said = []
    for test in results.tests:
        base = _distinct(results, lambda c, t=test: c.result.get(f"accuracy/{t}/base"))
        if len(base) > 1 and not comparison.several_models(results):
            shown = ", ".join(f"{100 * float(value):.1f}% ({cells_of(n)})" for value, n in base.items())
            said.append(f"The base model's accuracy on {test} differs between cells: {shown}. They did not start equal.")
        problems = {frozenset(cell.problems.loc[cell.problems["test"] == test, "problem"]) for cell in _tested(results)}
        if len(problems) > 1:
            said.append(f"Not all cells were tested on the same problems of {test}; differences use those in common.")
    return said


def _tested(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if cell.status == "done" and not cell.problems.empty]


def _gradings(results: Results) -> list[str]:
    counts = {key: sum(cell.result.get(key) or 0 for cell in results.cells) for key in FAILED_GRADINGS}
    words = {"score/timeouts": "time-outs", "score/errors": "errors", "eval/timeouts": "time-outs", "eval/errors": "errors"}
    said = [f"{n} {words[key]} in {'training' if key.startswith('score') else 'evaluation'}" for key, n in counts.items() if n]
    return [f"Gradings that did not come to an end count as wrong: {', '.join(said)}."] if said else []


def _watches(results: Results) -> list[str]:
    """Optimizer steps that were left out, and runs that were stopped."""
    skipped = {arm: n for arm in results.arms if (n := comparison.watched(results, arm).get(comparison.SKIPPED))}
    said = []
    if skipped:
        words = ", ".join(f"{n} in {arm}" for arm, n in skipped.items())
        said.append(f"Optimizer steps were left out because a check of the watch fired: {words}. Those arms took fewer.")
    stopped = [(results.arm(cell), cell.seed, by) for cell in results.cells if (by := cell.result.get("watch/stopped_by"))]
    if stopped:
        words = "; ".join(f"{arm}, seed {seed} by {by}" for arm, seed, by in stopped)
        said.append(f"The watch stopped {cells_of(len(stopped))}: {words}.")
    return said
