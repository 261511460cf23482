"""Parts by the name that a configuration gives them (`_target_`): whether they exist; one message where they cannot be made.

`settings.targets` checks the parts of this package, before anything is imported. Here the others are imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dash_exp.core import files
from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.settings.targets import HYDRAS_OWN, PACKAGE, without_brought

INSTALLED = [Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "purelib", "platlib")]


def made(cfg: DictConfig, key: str, given: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The part at `key`, or what it returns where it is called with what the run has `given`; `options` are Hydra's.

    Raises UserError where it cannot be made.
    """
    with refusing(named(cfg, key), "cannot be made", "Correct its settings"):
        part = instantiate(OmegaConf.select(cfg, key), **options)
        return part if given is None else part(**given)


def named(cfg: DictConfig, key: str) -> str:
    """How a message names the part at `key`."""
    return f"{key}._target_={OmegaConf.select(cfg, f'{key}._target_')}"


@contextmanager
def refusing(where: str, wrong: str, right: str) -> Iterator[None]:
    """Any error inside becomes one UserError, with the error's own words in brackets. A UserError stays as it is, and so does
    the error of a disk, which `cli` explains; also those that Hydra has wrapped.
    """
    try:
        yield
    except Exception as error:  # each part, and the package that it is from, has errors of its own
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError) or files.trouble(cause):
                raise cause from None
            cause = cause.__cause__
        raise UserError(_inner(error, where), f"{wrong} ({_words(error)})", right) from error


def _words(error: Exception) -> str:
    """What went wrong, without what Hydra says around it, and where in the code of the user."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    lines = [line for line in traceback.extract_tb(cause.__traceback__) if not _is_installed(line.filename)]
    return error_line(cause) + (f"; {Path(lines[-1].filename).name}, line {lines[-1].lineno}" if lines else "")


def _is_installed(file: str) -> bool:
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in [PACKAGE, *INSTALLED])


def _inner(error: Exception, where: str) -> str:
    """The setting that Hydra names where a part inside the part `where` failed, else `where`."""
    found = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    return found[1] if found and found[1] != where.partition("._target_=")[0] else where


# --- whether they exist ------------------------------------------------------------------------------------------------


def check_named(tree: object, key: str = "") -> None:
    """Raise UserError for the first `_target_` of another package in the settings `tree` that does not exist, does not take a
    setting that it is given, or lacks one.
    """
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            check_named(item, f"{key}[{i}]")
    if not isinstance(tree, dict):
        return
    target = tree.get("_target_")
    if isinstance(target, str) and not target.startswith("dash_exp."):
        _check_settings(tree, key, _found(target, f"{key}._target_={target}"))
    for name, value in tree.items():
        check_named(value, f"{key}.{name}" if key else str(name))


def _found(target: str, where: str) -> Any:
    """The function or class of this name."""
    part: Any = None
    path = ""
    for name in target.split("."):
        parent, path = path, f"{path}.{name}".lstrip(".")
        try:
            known = part is not None and hasattr(part, name)
            part = getattr(part, name) if known else importlib.import_module(path)
        except Exception as error:  # a module of the user may raise anything while it is imported
            if not (isinstance(error, ModuleNotFoundError) and error.name == path):
                wrong = f"the module {path} cannot be imported ({type(error).__name__}: {error_line(error)})"
                raise UserError(where, wrong, "Correct it") from error
            close = get_close_matches(name, dir(part), n=1) if parent else []
            wrong = f"there is no {name} in {parent}" if parent else f"there is no module {name}"
            raise UserError(where, wrong, f"Use {parent}.{close[0]}" if close else "Correct the name") from error
    if not callable(part):
        raise UserError(where, "is not a function or class", "Write module.name of one")
    return part


def _check_settings(part: dict[object, object], key: str, target: Any) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # some that are written in C have none
        return
    given = [name for name in without_brought(part, key) if name not in HYDRAS_OWN]
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [str(name) for name in given if name not in takes and not takes_any]
    if unknown:
        close = get_close_matches(unknown[0], takes, n=1)
        remove = f"{' '.join(f'~{key}.{name}' for name in unknown)} removes {'it' if len(unknown) == 1 else 'them'}"
        right = f"Write {close[0]}" if close else f"It has {', '.join(takes) or 'none'}; {remove}"
        raise UserError(", ".join(f"{key}.{name}" for name in unknown), f"{part['_target_']} has no such setting", right)
    needs = [p.name for p in parameters if p.default is p.empty and p.name in takes and p.name not in given]
    if needs and not part.get("_partial_") and not part.get("_args_"):
        right = f"Add +{key}._partial_=true if it is a function that the run calls, otherwise +{key}.{needs[0]}=..."
        raise UserError(f"{key}.{needs[0]}", f"is missing: {part['_target_']} needs it", right)
