"""The tasks of reasoning-gym (arXiv 2505.24760): which there are, what options they take, and the score of an answer.

The package is imported by the first call and not before: that takes a second or two, and most runs do without it.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any

from dash_exp.core.errors import UserError

# Tasks that are refused, with the reason.
UNUSABLE = {
    "coin_flip": "its scorer takes any beginning of the answer for the answer, such as 0",
    "game_of_life_halting": "its scorer takes any answer for right",
    "puzzle24": "its scorer takes any four numbers, such as 6+6+6+6, and not only those of the problem",
}
# Tasks some of whose problems depend on the order of a set of texts, which each process of Python has for itself.
BY_HASH = frozenset(["codeio", "isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"])
# Tasks whose scorer runs the answer as Python: only literals and single names come to it, and what
# is no Python.
RUN_AS_PYTHON = frozenset(["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"])
# What an answer must look like to come to the scorers of some tasks. Sympy's parser runs what it is given as Python, so there a
# dot is only in a number, the only brackets are ( ), and of names there are single letters and these functions.
FUNCTIONS = "sin|cos|tan|cot|sec|csc|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|Abs|pi"
FORMULA = rf"(?:[0-9]++\.?[0-9]*+|\.[0-9]++|(?:{FUNCTIONS}|[a-zA-Z])(?![a-zA-Z0-9_])|[-+*/() \t\n])++"
FORMS = {
    "complex_arithmetic": r"[-+*()0-9.ij \t]+",  # its scorer takes nan for right
    "countdown": FORMULA,
    "intermediate_integration": FORMULA,
    "polynomial_multiplication": FORMULA,
    "prime_factorization": r"[0-9]+(?:\s*×\s*[0-9]+)*",  # its scorer fails on others
    "simple_integration": FORMULA,
}


@cache
def tasks() -> dict[str, tuple[Any, Any]]:
    """Every task by name: the class of its data set and the dataclass of its options. UserError without the package."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError("reasoning-gym", f"cannot be imported ({error})", "Run pip install -e '.[gym]'") from error
    return {name: DATASETS[name] for name in sorted(DATASETS) if name != "composite"}


def warm_up() -> None:
    """Import the package, for a process that scores."""
    tasks()


def dataset(task: str, options: Mapping[str, Any], seed: int = 0, size: int = 1) -> Any:
    """The data set of a task, with an entry (question, answer, metadata) for each index from 0.

    Raises UserError for a task that does not exist or is refused, and for options that it does not have or refuses.
    """
    if task not in tasks():
        close = get_close_matches(task, tasks(), n=3)
        right = f"Did you mean {' or '.join(close)}" if close else f"There is {', '.join(tasks())}"
        raise UserError(f"task {task}", "is not one of reasoning-gym", right)
    if task in UNUSABLE:
        raise UserError(f"task {task}", UNUSABLE[task], "Choose another task")
    if task in BY_HASH and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise UserError(f"task {task}", "makes other problems in each process", "Start the command with PYTHONHASHSEED=0")
    kind, settings = tasks()[task]
    known = {f.name: f.default for f in fields(settings) if f.name not in ("seed", "size")}
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            right = (f"Did you mean {close[0]}? " if close else "") + f"It has {', '.join(known) or 'none'}"
            raise UserError(f"options.{name}", f"the task {task} has no such option", right)
    given = {k: tuple(v) if isinstance(v, list) and isinstance(known[k], tuple) else v for k, v in options.items()}
    try:
        return kind(settings(**given, seed=seed, size=size))
    except Exception as error:  # each task checks its options in its own way
        said = str(error) or type(error).__name__
        raise UserError(f"options of task {task}", f"cannot be used ({said})", "Correct them") from error


def score(task: str, options: Mapping[str, Any], answer: str, entry: Mapping[str, Any]) -> float:
    """The task's own score of an answer to an entry, from 0 to 1; 0 for an answer that is kept from the scorer."""
    if not may_be_scored(task, answer):
        return 0.0
    return float(_scorer(task, json.dumps(options, sort_keys=True)).score_answer(answer, dict(entry)))


@lru_cache(maxsize=64)
def _scorer(task: str, options: str) -> Any:
    return dataset(task, json.loads(options))


def may_be_scored(task: str, answer: str) -> bool:
    """Whether the task's scorer may be given this answer: it has the task's form, and running it would do nothing."""
    if form := FORMS.get(task):
        return bool(re.fullmatch(form, answer))
    if task not in RUN_AS_PYTHON:
        return True
    try:
        found = ast.parse(answer.lstrip(" \t"), mode="eval")  # the same text that eval compiles
    except (SyntaxError, ValueError):
        return True  # eval refuses it as well
    except (MemoryError, RecursionError):
        return False
    try:
        ast.literal_eval(found)
    except Exception:
        return isinstance(found.body, ast.Name)
    return True
