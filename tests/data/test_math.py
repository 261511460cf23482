import pytest
from json_lines import write

from dash_exp.core.errors import UserError
from dash_exp.data import math


def test_math_rows_take_the_answer_field_or_the_last_box(tmp_path):
    rows = [
        {"problem": "a", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
        {"problem": "b", "solution": "\\boxed{3}", "answer": "4", "unique_id": "u/1"},
    ]
    first, second = math.load(write(tmp_path / "d", rows), "train")
    assert (first.answer, second.answer, second.id) == ("\\frac{1}{2}", "4", "u/1")


def test_math_boxes_are_read_as_in_completions(tmp_path, caplog):
    solutions = ["so \\boxed 2.", "so \\boxed {17}", "so $\\boxed{30}$ or $\\boxed{150}$.", "no primes: \\boxed{}", "none"]
    problems = math.load(write(tmp_path / "d", [{"problem": "a", "solution": s} for s in solutions]), "train")
    assert [p.answer for p in problems] == ["2", "17", "30,150"]
    assert "rows without an answer are left out, 2 of the train split: train/4, train/5" in caplog.text
    with pytest.raises(UserError, match=r"line 1, field solution: has no \\boxed\{answer\}"):
        math.load(write(tmp_path / "e", [{"problem": "a", "solution": "none"}]), "train")
