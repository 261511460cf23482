"""Settings and derived sizes that differ between the arms, and which of these differences the swept settings explain."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dash_exp.commands import cli
from dash_exp.core.words import first_line
from dash_exp.results.cells import Results
from dash_exp.results.run_folder import read_yaml
from dash_exp.settings.overrides import number_of_kl
from dash_exp.training.budget import LIMITS

# These name a run, set its noise, or say how it is reported and where things are kept. They are expected to differ.
NAMES = ["seed", "name", "experiment", "study", "objective", "hydra", "logger", "completions_every", "table_rows"]
NAMES += ["checkpoints", "teacher.file"]
OWN = re.compile(r"\$\{[^}]*\bown\.")  # a reference to a setting of the sweep file itself

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


def settings(results: Results) -> dict[str, dict[str, str]]:
    """Settings in which any two cells differ, except seed and names: key -> arm -> its value, or its values joined by |."""
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
    """The differences as the report shows them.

    If only some arms have a part, such as a filter, one row names that part and the settings below it are left out.
    """
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
    text = "null" if config[key] is None else str(config[key])
    return text if text.isprintable() else repr(text)  # a line break would end a row of a table


def explained(results: Results) -> tuple[set[str], list[str]]:
    """The settings that the swept keys change, and the overrides that could not be tried, with the reason.

    Each swept override is composed alone with the configuration of this checkout. A sweep file's own settings (`own`) are not
    there: they change what refers to them in the cells.
    """
    keys = set(results.swept)
    untried: list[str] = []
    if any((cell.config.get("budget") or {}).get("match") for cell in results.cells):
        keys |= {f"budget.{limit}" for limit in LIMITS}
    if any(key.startswith("own.") for key in keys):
        keys |= _references_to_own(results)
    tried = [f"{key}={value}" for key in results.swept if not key.startswith("own.") for value in _values(results, key)]
    if not tried:
        return keys, untried
    try:
        default = _composed()
    except Exception as error:  # the checkout may have changed since; the report is written all the same
        return keys, [f"the configuration of this checkout ({first_line(str(error)) or type(error).__name__})"]
    for override in tried:
        try:
            changed = _composed(*number_of_kl([override]))
        except Exception as error:
            untried.append(f"{override} ({first_line(str(error)) or type(error).__name__})")
            continue
        keys |= {key for key in default.keys() | changed.keys() if _shown(default, key) != _shown(changed, key)}
    return keys, untried


def _references_to_own(results: Results) -> set[str]:
    """The settings that refer to `own` in the configuration of a cell as it was composed, and those below them."""
    composed = [flat(read_yaml(cell.folder / ".hydra" / "config.yaml", dict) or {}) for cell in results.cells]
    refer = {key for config in composed for key, value in config.items() if OWN.search(str(value))}
    return {key for cell in results.cells for key in flat(cell.config or {}) if under(key, refer)}


@functools.lru_cache(maxsize=256)
def _composed(*overrides: str) -> Flat:
    return flat(cli.settings(overrides))


def _values(results: Results, key: str) -> list[str]:
    return list(dict.fromkeys(c.overrides[key] for c in results.cells if key in c.overrides))


def sizes(results: Results) -> dict[str, dict[str, str]]:
    """Derived sizes in which cells differ: size -> arm -> its value, or its values joined by |."""
    keys = dict.fromkeys(key for cell in results.cells for key in cell.result if key.startswith("sizes/"))
    found = {
        key.removeprefix("sizes/"): {
            arm: " | ".join(dict.fromkeys(str(c.result[key]) for c in results.of_arm(arm, None) if key in c.result))
            for arm in results.arms
        }
        for key in keys
    }
    return {size: by_arm for size, by_arm in found.items() if len({v for v in by_arm.values() if v}) > 1}


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
