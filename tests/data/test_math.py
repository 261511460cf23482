from json_lines import write

from dash_exp.data import math


def test_math_rows_take_the_answer_field_or_the_last_box(tmp_path):
    rows = [
        {"problem": "a", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
        {"problem": "b", "solution": "\\boxed{3}", "answer": "4", "unique_id": "u/1"},
    ]
    first, second = math.load(write(tmp_path / "d", rows), "train")
    assert (first.answer, second.answer, second.id) == ("\\frac{1}{2}", "4", "u/1")


def test_last_boxed():
    assert math.last_boxed("\\boxed{a} and \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert math.last_boxed("none") is None
    assert math.last_boxed("\\boxed{never closed") is None
