"""GSM8K: school problems whose answer is a number (arXiv 2110.14168)."""

from __future__ import annotations

import re

from dash_exp.core.types import Problem
from dash_exp.data.readers import Row
from dash_exp.data.rows import NoAnswerError, load_problems, text_of

# What its authors had a calculator replace while a model samples: "48/2 = <<48/2=24>>24 clips".
ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def load(path: str, split: str, annotations: bool = False) -> list[Problem]:
    """The problems of one split, "train" or "test".

    `path`: a folder with train.jsonl and test.jsonl, or a hub name. Fields of a row: `question`, and `answer`, which is the
    reasoning followed by `#### number`; rows without it are left out. `annotations`: solutions keep their calculator
    annotations (`ANNOTATION`). Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = text_of(row, "answer", where)
        if "####" not in solution:
            raise NoAnswerError(f"{where}, field answer", "has no '#### number' at its end", "GSM8K rows end with it")
        reasoning, answer = solution.rsplit("####", 1)
        answer = answer.strip()
        gold = answer.replace(",", "")
        if not gold:
            raise NoAnswerError(f"{where}, field answer", "has nothing after the ####", "GSM8K rows end with '#### number'")
        if not annotations:
            reasoning = ANNOTATION.sub("", reasoning)
        return Problem(name, text_of(row, "question", where), gold, f"{reasoning.strip()}\n#### {answer}")

    return load_problems(path, split, parse, subset="main")
