"""MATH and MATH-500: competition problems (arXiv 2103.03874)."""

from __future__ import annotations

from dash_exp.core.types import Problem
from dash_exp.data.rows import NoAnswerError, Row, id_of, is_local, load_problems, text_of
from dash_exp.rewards.answers import boxed_answer


def load(path: str, split: str, hub_splits: str | None = None, hub_path: str | None = None) -> list[Problem]:
    """The problems of one split, "train" or "test".

    `path`: a folder with train.jsonl and test.jsonl, or a hub name. On the hub, `hub_splits` may name other splits (such as
    "train+test") and `hub_path` another data set. Fields of a row: `problem`, `solution` and, optionally, `unique_id` and
    `answer`; without `answer` it is what the last box of the solution holds, read as in a completion. Rows without an
    answer are left out. Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "solution", where)
        given = row.get("answer") not in (None, "")
        answer = text_of(row, "answer", where) if given else boxed_answer(solution)
        if answer is None:
            raise NoAnswerError(f"{where}, field solution", "has no \\boxed{answer}", "Give it, or a field 'answer'")
        return Problem(id_of(row, "unique_id", name, where), text_of(row, "problem", where), answer, solution)

    if is_local(path):
        return load_problems(path, split, parse)
    return load_problems(hub_path or path, hub_splits or split, parse)
