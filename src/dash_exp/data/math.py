"""MATH and MATH-500: competition problems (arXiv 2103.03874)."""

from __future__ import annotations

from dash_exp.core.types import Problem
from dash_exp.data.readers import Row, is_local
from dash_exp.data.rows import NoAnswerError, id_of, load_problems, text_of
from dash_exp.rewards.answers import boxed_answer


def load(
    path: str, split: str, hub_splits: str | None = None, hub_path: str | None = None, other_path: str | None = None
) -> list[Problem]:
    """The problems of a split, "train" or "test", or of both, "train+test".

    `path`: a folder with train.jsonl and test.jsonl, or a hub name. In place of a hub name `hub_path` and `hub_splits` (in the
    settings of earlier runs) may name another data set of the hub and its splits; `other_path`, where it is given, is read in
    place of all of them. Fields of a row: `problem`, `solution` and, optionally, `unique_id` and `answer`; without `answer` it
    is what the last box of the solution holds, read as in a completion. Rows without an answer are left out. Raises UserError
    for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "solution", where)
        given = row.get("answer") not in (None, "")
        answer = text_of(row, "answer", where) if given else boxed_answer(solution)
        if answer is None:
            raise NoAnswerError(f"{where}, field solution", "has no \\boxed{answer}", "Give it, or a field 'answer'")
        return Problem(id_of(row, "unique_id", name, where), text_of(row, "problem", where), answer, solution)

    if other_path or is_local(path):
        return load_problems(other_path or path, split, parse)
    return load_problems(hub_path or path, hub_splits or split, parse)
