"""MBPP+: tasks of MBPP with many more tests (EvalPlus, arXiv 2305.01210)."""

from __future__ import annotations

from collections.abc import Iterator

from dash_exp.core.types import Problem
from dash_exp.data.mbpp import official_split, problem_of, task_id, whole_file
from dash_exp.data.readers import Located, Row, hub_rows, is_local, read_rows
from dash_exp.data.rows import load_problems, problems_of, text_of, texts


def load(path: str, split: str) -> list[Problem]:
    """The problems of one split, "train" or "test", of the 378 tasks.

    The data set has a single split, "test", with the task_ids of MBPP. Here "test" are the tasks of MBPP's test split (11-510)
    and "train" all others, so that a run that trains on MBPP or on MBPP+ can be tested on either. (The paper trains and tests
    on MBPP+; this division is ours.)

    `path`: a hub name, or a folder that has all tasks in mbpp_plus.jsonl, or train.jsonl and test.jsonl, which are used as they
    are. Fields of a row: `prompt`, `code`, `task_id`, `test_list`, `test` and `test_imports`. The prompt shows `test_list`; a
    program is graded by the script in `test`, which is not shown. Raises UserError for data that cannot be read.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        graded = [*texts(row, "test_imports", where), text_of(row, "test", where)]
        return problem_of(row, where, f"mbpp_plus/{task_id(row, where)}", texts(row, "test_list", where), graded)

    def of_part(rows: Iterator[Located]) -> Iterator[Located]:
        return (r for r in rows if (official_split(r) == "test") == (split == "test"))

    if (whole := whole_file(path, "mbpp_plus.jsonl")) is not None:
        return problems_of(of_part(read_rows(whole, "mbpp_plus")), parse, path, split)
    if is_local(path):
        return load_problems(path, split, parse)
    return problems_of(of_part(hub_rows(path, "test", None)), parse, path, split)
