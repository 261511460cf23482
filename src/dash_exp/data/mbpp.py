"""MBPP: small Python tasks with tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.rows import Located, Row, is_local, load_problems, problems_of, read_rows, text_of, texts


def load(path: str, split: str, subset: str = "full") -> list[Problem]:
    """MBPP: small Python tasks with three tests each, in the official splits by task_id: 1-10 prompt, 11-510 test, 511-600
    validation, 601-974 train.

    `path`: a hub name (with `subset` "full" or "sanitized"), or a folder with the published mbpp.jsonl or with train.jsonl and
    test.jsonl. Fields: `text` (`prompt` in the sanitized subset), `code`, `task_id`, `test_list`, and where there are any
    `test_setup_code`, `test_imports` and `challenge_test_list`. The prompt shows the text and the tests, from which a reader
    learns the function's name; tests of more than 500 characters (of two tasks) and challenge tests are graded but not shown.
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
        return program(row, where, f"mbpp/{task_id(row, where)}", tests, graded)

    if (whole := whole_file(path, "mbpp.jsonl")) is not None:
        return problems_of(_of_split(read_rows(whole, "mbpp"), split), parse, path, split)
    return load_problems(path, split, parse, subset=subset)


def mbpp_split(task_id: int) -> str:
    """The official split of a task of MBPP."""
    return "prompt" if task_id <= 10 else "test" if task_id <= 510 else "validation" if task_id <= 600 else "train"


SHOWN_CHARACTERS = 500  # the longest test that a prompt shows


def program(row: Row, where: str, name: str, shown: Sequence[str], graded: Sequence[str]) -> Problem:
    text = _unix(text_of(row, "text" if "text" in row else "prompt", where)).strip()
    code = _unix(text_of(row, "code", where))
    tests = [_unix(test).strip() for test in shown if len(test) <= SHOWN_CHARACTERS]
    prompt = "\n".join([text, "The program must pass these tests:", *tests, ""]) if tests else f"{text}\n"
    return Problem(name, prompt, code, code, tuple(_unix(piece) for piece in graded if piece.strip()))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def task_id(row: Row, where: str) -> int:
    value = text_of(row, "task_id", where).rpartition("/")[2]  # some copies write "Mbpp/2"
    if not value.isdecimal():
        raise UserError(f"{where}, field task_id", f"is {row['task_id']!r}", "Give MBPP's number of the task")
    return int(value)


def whole_file(path: str, name: str) -> Path | None:
    """The file of a folder that holds all splits, where there is one."""
    file = Path(path).expanduser() / name
    return file if is_local(path) and file.is_file() else None


def _of_split(rows: Iterator[Located], split: str) -> Iterator[Located]:
    return (r for r in rows if mbpp_split(task_id(r[0], r[1])) == split)
