import pytest
from problems import DOUBLE

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.code import CodeReward, program_of


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```\n```\nx = 3\n```", "x = 2\n"),
        ("```\nx = 1\n```\n```text\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1\n```\n```\nprints 1\n```", "x = 1\n"),
        ("```python\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("  ```Python title\n  x = 1\n  ```", "  x = 1\n"),
        ("`x`", "`x`"),
        ("", ""),
    ],
)
def test_the_program_in_a_completion(text, program):
    assert program_of(text) == program


def test_code_is_graded_in_order_and_failures_are_counted_apart(bubblewrap):
    reward = CodeReward(timeout_s=1, workers=3)
    texts = [
        "def double(x):\n    return x + x",
        "I think\n```python\ndef double(x):\n    return 2 * x\n```\nis right.",
        "def double(x):\n    return x ** 2",
        "def double(x):\n    while True: pass",
        "no program at all",
        "import sys; sys.exit(0)",
        "def double(x):\n    return 2 * x",
    ]
    broken = Problem("b", "?", "", tests=())
    scores = reward([DOUBLE] * 6 + [broken], texts)
    assert scores.rewards == [1, 1, 0, 0, 0, 0, 0]
    assert (scores.timeouts, scores.errors) == (1, 1)


def test_code_without_bubblewrap_is_refused_before_anything_runs(path):
    with pytest.raises(UserError, match="apt install bubblewrap"):
        CodeReward()
    assert CodeReward(isolation="process")([DOUBLE], ["def double(x): return x * 2"]).rewards == [1]
