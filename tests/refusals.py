"""What the tests of settings share: the error that settings end with, and whether each refusal of a file has a case."""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from conftest import composed
from omegaconf import DictConfig

from dash_exp.commands import build
from dash_exp.core.errors import UserError
from dash_exp.settings.validate import validate


@cache
def refusal(overrides: str) -> UserError | None:
    """The error of these settings, overrides divided by blanks; None where they are good."""
    return refusal_of(composed(*overrides.split()))


def refusal_of(cfg: DictConfig) -> UserError | None:
    try:
        validate(cfg)
        build.check_parts(cfg)
    except UserError as error:
        return error
    return None


def assert_refused(error: UserError | None, message: str) -> None:
    assert error is not None, "the settings were taken"
    assert message in str(error), str(error)
    assert "\n" not in str(error)


def assert_each_is_met(module: ModuleType, errors: Iterable[UserError | None]) -> None:
    """Every `raise` of the module is the line where one of these errors came from."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    there = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    last = [traceback.extract_tb(error.__traceback__)[-1] for error in errors if error is not None]
    assert there
    assert there - {line.lineno for line in last if line.filename == module.__file__} == set()
