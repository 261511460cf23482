"""GSM8K: school problems whose answer is a number (arXiv 2110.14168)."""

from __future__ import annotations

from dash_exp.core.types import Problem
from dash_exp.data.rows import NoAnswerError, Row, load_problems, text_of


def load(path: str, split: str) -> list[Problem]:
    """The problems of one split, "train" or "test".

    `path`: a folder with train.jsonl and test.jsonl, or a hub name. Fields of a row: `question`, and `answer`, which is the
    reasoning followed by `#### number`; rows without it are left out. Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "answer", where)
        if "####" not in solution:
            raise NoAnswerError(f"{where}, field answer", "has no '#### number' at its end", "GSM8K rows end with it")
        reasoning, answer = solution.rsplit("####", 1)
        if not answer.strip():
            raise NoAnswerError(
                f"{where}, field answer", "has nothing after its last ####", "GSM8K rows end with '#### number'"
            )
        prompt = text_of(row, "question", where)
        return Problem(name, prompt, answer.strip().replace(",", ""), f"{reasoning.strip()}\n#### {answer.strip()}")

    return load_problems(path, split, parse, subset="main")
