"""GSM8K."""

from __future__ import annotations

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.rows import Row, load_problems, text_of


def load(path: str, split: str) -> list[Problem]:
    """GSM8K: fields `question` and `answer` (reasoning, then `#### number`). `path`: a folder, or the hub name."""

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "answer", where)
        if "####" not in solution:
            raise UserError(f"{where}, field answer", "has no '#### number' at its end", "GSM8K rows end with it")
        reasoning, answer = solution.rsplit("####", 1)
        if not answer.strip():
            raise UserError(f"{where}, field answer", "has nothing behind its last ####", "GSM8K rows end with '#### number'")
        prompt = text_of(row, "question", where)
        return Problem(name, prompt, answer.strip().replace(",", ""), f"{reasoning.strip()}\n#### {answer.strip()}")

    return load_problems(path, split, parse, subset="main")
