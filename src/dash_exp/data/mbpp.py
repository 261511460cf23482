"""MBPP: small Python tasks with tests (arXiv 2108.07732). Also what MBPP+ shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.readers import Located, Row, is_local, read_rows
from dash_exp.data.rows import load_problems, problems_of, text_of, texts


def load(path: str, split: str, subset: str = "full") -> list[Problem]:
    """The problems of one official split, by task_id: 1-10 "prompt", 11-510 "test", 511-600 "validation", 601-974 "train".

    `path`: a hub name (`subset` is then "full" or "sanitized"), or a folder that has the published mbpp.jsonl, or train.jsonl
    and test.jsonl. Fields of a row: `text` (`prompt` in the sanitized subset), `code`, `task_id`, `test_list`, and optionally
    `test_setup_code`, `test_imports` and `challenge_test_list`.

    The prompt shows the text and the tests, because only the tests give the name of the function. Tests of more than 500
    characters (in two tasks) and challenge tests are graded but not shown. Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        tests = texts(row, "test_list", where)
        if not tests:
            raise UserError(
                f"{where}, field test_list", "is missing or empty", "Give at least one test, such as 'assert f(1) == 2'"
            )
        set_up = [text_of(row, "test_setup_code", where)] if str(row.get("test_setup_code") or "").strip() else []
        set_up += texts(row, "test_imports", where)
        graded = [*set_up, *tests, *texts(row, "challenge_test_list", where)]
        return problem_of(row, where, f"mbpp/{task_id(row, where)}", tests, graded)

    if (whole := whole_file(path, "mbpp.jsonl")) is not None:
        rows = (r for r in read_rows(whole, "mbpp") if official_split(r) == split)
        return problems_of(rows, parse, path, split)
    return load_problems(path, split, parse, subset=subset)


# --- shared with MBPP+ -------------------------------------------------------------------------------------------------

SHOWN_CHARACTERS = 500  # the longest test that a prompt shows


def official_split(located: Located) -> str:
    """The official split of a row of MBPP: "prompt", "test", "validation" or "train"."""
    row, where, _ = located
    task = task_id(row, where)
    return "prompt" if task <= 10 else "test" if task <= 510 else "validation" if task <= 600 else "train"


def problem_of(row: Row, where: str, name: str, shown: Sequence[str], graded: Sequence[str]) -> Problem:
    """The problem with id `name`: the prompt shows the tests `shown`, a program is graded by the pieces `graded`."""
    text = _unix(text_of(row, "text" if "text" in row else "prompt", where)).strip()
    code = _unix(text_of(row, "code", where))
    tests = [_unix(test).strip() for test in shown if len(test) <= SHOWN_CHARACTERS]
    prompt = "\n".join([text, "The program must pass these tests:", *tests, ""]) if tests else f"{text}\n"
    return Problem(name, prompt, code, code, tuple(_unix(piece) for piece in graded if piece.strip()))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def task_id(row: Row, where: str) -> int:
    """MBPP's number of the task. UserError where the field is not a number."""
    value = text_of(row, "task_id", where).rpartition("/")[2]  # some copies write "Mbpp/2"
    if not value.isdecimal():
        raise UserError(f"{where}, field task_id", f"is {row['task_id']!r}", "Write the number of the task in MBPP")
    return int(value)


def whole_file(path: str, name: str) -> Path | None:
    """The file `name` with all splits, if `path` is a folder that has one."""
    file = Path(path).expanduser() / name
    return file if is_local(path) and file.is_file() else None
