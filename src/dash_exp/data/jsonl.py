"""Your own data: JSON lines whose fields have any names."""

from __future__ import annotations

from dash_exp.core.types import Problem
from dash_exp.data.rows import Row, answer_of, id_of, load_problems, text_of


def load(path: str, split: str, prompt: str, answer: str, solution: str | None = None) -> list[Problem]:
    """The problems of one split, "train" or "test".

    `path`: a folder with train.jsonl and test.jsonl, or a hub name. `prompt`, `answer`, `solution`: the names of the fields.
    Only SFT needs a solution. A field `id` is optional. Rows with an empty answer are left out. Raises UserError for data that
    cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        trace = text_of(row, solution, where) if solution else None
        return Problem(id_of(row, "id", name, where), text_of(row, prompt, where), answer_of(row, answer, where), trace)

    return load_problems(path, split, parse)
