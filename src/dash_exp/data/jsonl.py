"""JSON lines with fields of the user's own names."""

from __future__ import annotations

from dash_exp.core.types import Problem
from dash_exp.data.rows import Row, id_of, load_problems, text_of


def load(path: str, split: str, prompt: str, answer: str, solution: str | None = None) -> list[Problem]:
    """Any JSON lines: a folder with train.jsonl and test.jsonl. `prompt`, `answer`, `solution` name the fields."""

    def parse(row: Row, where: str, name: str) -> Problem:
        trace = text_of(row, solution, where) if solution else None
        return Problem(id_of(row, "id", name, where), text_of(row, prompt, where), text_of(row, answer, where), trace)

    return load_problems(path, split, parse)
