"""HumanEval: Python functions whose head and docstring are given, with tests (arXiv 2107.03374). For evaluation only."""

from __future__ import annotations

import re

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.mbpp import whole_file
from dash_exp.data.readers import Row, read_rows
from dash_exp.data.rows import load_problems, problems_of, text_of
from dash_exp.rewards.continued import before

# What a chat asks. A model without a chat gets the code alone, and goes on with it.
ASKED = "Complete this Python function. Answer with the whole function in a block of code.\n```python\n{code}\n```"


def load(path: str, split: str = "test") -> list[Problem]:
    """The problems of the only split, "test".

    `path`: a hub name, a folder that has the published HumanEval.jsonl or test.jsonl, or a file. Fields of a row: `task_id`,
    `prompt`, `canonical_solution`, `test` (which defines `check`) and `entry_point`, the name of the function.

    The prompt is the code that is to be continued, and in a chat a request to complete it. How a completion becomes a program:
    `rewards.continued`. The tests run behind what the prompt has before the function, since some of them use it, and end with
    `check(entry_point)`. Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        code, entry = text_of(row, "prompt", where), text_of(row, "entry_point", where)
        test, solution = text_of(row, "test", where), text_of(row, "canonical_solution", where)
        try:
            head = before(code, entry)
        except ValueError as error:
            raise UserError(f"{where}, field prompt", str(error), "Name the function that it begins as entry_point") from error
        if not re.search(r"^def[ \t]+check\b", test, re.MULTILINE):
            raise UserError(f"{where}, field test", "has no function check", "Define check(candidate), which runs the tests")
        pieces = (head, test, f"check({entry})")
        return Problem(
            id=text_of(row, "task_id", where),
            prompt=code,
            answer=solution,
            solution=solution,
            tests=tuple(piece for piece in pieces if piece.strip()),
            messages=(("user", ASKED.format(code=code.strip("\n"))),),
            extra={"continues": code, "entry_point": entry},
        )

    if (whole := whole_file(path, "HumanEval.jsonl")) is not None:
        return problems_of(read_rows(whole, "humaneval"), parse, path, split)
    return load_problems(path, split, parse)
