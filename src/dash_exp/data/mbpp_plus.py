"""MBPP+: tasks of MBPP with many more tests."""

from __future__ import annotations

from collections.abc import Iterator

from dash_exp.core.types import Problem
from dash_exp.data.mbpp import mbpp_split, program, task_id, whole_file
from dash_exp.data.rows import Located, Row, hub_rows, is_local, load_problems, problems_of, read_rows, text_of, texts


def load(path: str, split: str) -> list[Problem]:
    """MBPP+: 378 tasks of MBPP with many more tests each, graded by the script in the field `test`; its tests are not shown.

    Published is one split, "test", with MBPP's task_ids. Here "test" are those of MBPP's test split (11-510) and "train" all
    others, so that neither set's training problems meet the other's tests. (The paper trains on MBPP+ and tests on it; this
    division is ours.) `path`: a hub name, or a folder with all tasks in mbpp_plus.jsonl, or with train.jsonl and
    test.jsonl, taken as they are. Fields: `prompt`, `code`, `task_id`, `test_list`, `test` and `test_imports`.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        graded = [*texts(row, "test_imports", where), text_of(row, "test", where)]
        return program(row, where, f"mbpp_plus/{task_id(row, where)}", texts(row, "test_list", where), graded)

    def of_part(rows: Iterator[Located]) -> Iterator[Located]:
        return (r for r in rows if (mbpp_split(task_id(r[0], r[1])) == "test") == (split == "test"))

    if (whole := whole_file(path, "mbpp_plus.jsonl")) is not None:
        return problems_of(of_part(read_rows(whole, "mbpp_plus")), parse, path, split)
    if is_local(path):
        return load_problems(path, split, parse)
    return problems_of(of_part(hub_rows(path, "test", None)), parse, path, split)
