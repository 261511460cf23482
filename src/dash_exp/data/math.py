"""MATH and MATH-500."""

from __future__ import annotations

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.rows import Row, id_of, is_local, load_problems, text_of
from dash_exp.rewards.grading import boxed


def load(path: str, split: str, hub_splits: str | None = None, hub_path: str | None = None) -> list[Problem]:
    """MATH: fields `problem`, `solution`, and `answer` or else the last \\boxed{} of the solution.

    `path`: a folder, or a hub name. On the hub the splits may be called otherwise (`hub_splits`, such as "train+test") and
    the test set may stand under another name (`hub_path`); a folder holds train.jsonl and test.jsonl.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "solution", where)
        answer = text_of(row, "answer", where) if "answer" in row else last_boxed(solution)
        if answer is None or not answer.strip():
            raise UserError(f"{where}, field solution", "has no \\boxed{answer}", "Give it, or a field 'answer'")
        return Problem(id_of(row, "unique_id", name, where), text_of(row, "problem", where), answer, solution)

    if is_local(path):
        return load_problems(path, split, parse)
    return load_problems(hub_path or path, hub_splits or split, parse)


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces matched. `"so \\boxed{\\frac{1}{2}}." -> "\\frac{1}{2}"`."""
    found = boxed(text)
    return found[-1][2] if found else None
