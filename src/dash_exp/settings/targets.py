"""Whether the parts that a configuration names (`_target_`) exist and take the settings given to them. No part is imported:
those of this package are looked up in its source.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.settings import renamed
from dash_exp.settings.data import BROUGHT

PACKAGE = Path(__file__).parents[1]
HYDRAS_OWN = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def check(tree: object, key: str = "") -> None:
    """Raise UserError for the first `_target_` in the settings `tree` that does not exist, or does not take a setting."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            check(item, f"{key}[{i}]")
    if not isinstance(tree, dict):
        return
    if "_target_" in tree:
        _check_one(tree, key)
    for name, value in tree.items():
        check(value, f"{key}.{name}" if key else str(name))


def check_argument(settings: dict[str, Any], key: str, argument: str) -> None:
    """Raise UserError where `settings[key]` names a part of this package that does not take this argument when it is called."""
    group, name = key.split(".")
    target = settings[group][name].get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{key}._target_", "is missing", "Write module.name, as in dash_exp.algorithms.losses.policy_gradient")
    module, _, function = target.rpartition(".")
    takes = _parts(module).get(function) if module.startswith("dash_exp.") else None
    if takes is not None and argument not in takes:
        raise UserError(f"{key}._target_={target}", f"is not a {name} function", f"Choose one that takes {argument}")


def without_brought(part: Iterable[object], key: str) -> list[object]:
    """The settings of the part at `key`, without what a test set brings: that is no argument of it."""
    return [setting for setting in part if not BROUGHT.fullmatch(f"{key}.{setting}")]


def _check_one(part: dict[object, object], key: str) -> None:
    target = part["_target_"]
    where = f"{key}._target_={'null' if target is None else target}"
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if not module:
        raise UserError(
            where, "is not a function or class", "Write module.name, as in dash_exp.algorithms.losses.policy_gradient"
        )
    if target in renamed.NAMES:
        raise UserError(where, "is the name of an earlier version", f"Write {renamed.NAMES[target]}")
    if module.partition(".")[0] != "dash_exp":
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UserError(where, f"there is no module {module}", "Correct the name, or put its folder on PYTHONPATH")
        return
    known = _parts(module)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        raise UserError(where, "does not exist", f"Use {module}.{close[0]}" if close else "Choose a file of its group in conf/")
    settings = known[name]
    for setting in without_brought(part, key):
        if settings is not None and setting not in settings | HYDRAS_OWN:
            close = get_close_matches(str(setting), settings, n=1)
            right = (f"Did you mean {close[0]}? " if close else "") + f"It has {', '.join(sorted(settings)) or 'none'}"
            raise UserError(f"{key}.{setting}", f"{target} has no such setting", right)


@cache
def _parts(module: str) -> dict[str, set[str] | None]:
    """The functions and classes of a module of this package, with the names of their arguments; None = any."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
    if file is None:
        return {}
    body = ast.parse(file.read_text(encoding="utf-8")).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    functions = {node.name: _arguments(node) for node in body if isinstance(node, ast.FunctionDef)}
    return {**functions, **{name: _of_class(node, classes) for name, node in classes.items()}}


def _of_class(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str] | None:
    """The arguments of `__init__`, or the fields of a dataclass, with those of its bases in the same module."""
    lines = [node, *_bases(node, classes)]
    for line in lines:
        for child in line.body:
            if isinstance(child, ast.FunctionDef) and child.name == "__init__":
                return _arguments(child)
    fields = [child for line in lines for child in line.body if isinstance(child, ast.AnnAssign)]
    return {field.target.id for field in fields if isinstance(field.target, ast.Name) and not field.target.id.startswith("_")}


def _bases(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield classes[base.id]
            yield from _bases(classes[base.id], classes)


def _arguments(node: ast.FunctionDef) -> set[str] | None:
    if node.args.kwarg is not None:
        return None
    return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self"}
