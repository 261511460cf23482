"""Whether the parts that a configuration names (`_target_`) exist and take the settings given to them. Imports none of them:
those of this package are looked up in its source.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from dash_exp.core.errors import UserError

PACKAGE = Path(__file__).parents[1]
HYDRAS_OWN = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def check(tree: object, key: str = "") -> None:
    """Raise UserError for the first `_target_` in the settings `tree` that cannot be found, or does not know a setting."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            check(item, f"{key}[{i}]")
    if not isinstance(tree, dict):
        return
    if "_target_" in tree:
        _check_one(tree, key)
    for name, value in tree.items():
        check(value, f"{key}.{name}" if key else str(name))


def takes(target: str) -> set[str] | None:
    """The names of what a part of this package takes; None where that is not known."""
    module, _, name = target.rpartition(".")
    return _parts(module).get(name) if module.startswith("dash_exp.") else None


def _check_one(part: dict[object, object], key: str) -> None:
    target = part["_target_"]
    where = f"{key}._target_={'null' if target is None else target}"
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if not module:
        raise UserError(
            where, "names nothing that can be made", "Write module.name, as in dash_exp.algorithms.losses.policy_gradient"
        )
    if module.partition(".")[0] != "dash_exp":
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UserError(where, f"there is no module {module}", "Mend the name, or put its folder on PYTHONPATH")
        return
    known = _parts(module)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        raise UserError(where, "is not there", f"Use {module}.{close[0]}" if close else "Choose a file of its group in conf/")
    settings = known[name]
    for setting in part:
        if settings is not None and setting not in settings | HYDRAS_OWN:
            has = ", ".join(sorted(settings)) or "none"
            raise UserError(f"{key}.{setting}", f"{target} has no such setting", f"It has {has}")


@cache
def _parts(module: str) -> dict[str, set[str] | None]:
    """The functions and classes of a module of this package, with the names of what each takes; None = anything."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
    if file is None:
        return {}
    body = ast.parse(file.read_text(encoding="utf-8")).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    functions = {node.name: _arguments(node) for node in body if isinstance(node, ast.FunctionDef)}
    return {**functions, **{name: _of_class(node, classes) for name, node in classes.items()}}


def _of_class(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str] | None:
    """What `__init__` takes, or the fields of a dataclass, with those of its bases in the same module."""
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
