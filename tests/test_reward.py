import threading
import time

import pytest

from dash_exp import sandbox
from dash_exp.errors import UserError
from dash_exp.reward import CodeReward, ExactReward, MathReward, program_of
from dash_exp.types import Problem


def problem(answer):
    return Problem("p", "?", answer)


@pytest.fixture(scope="module")
def math_reward():
    reward = MathReward(timeout_s=2.0, workers=2)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("text", "right"),
    [("3+4=7 A:7", 1), ("A:7", 1), ("A:8 A:7", 1), ("A:7 A:8", 0), ("A:77", 0), ("7", 0), ("", 0), ("A:", 0)],
)
def test_exact_takes_the_last_match(text, right):
    assert ExactReward(r"A:\s*(\S+)")([problem("7")], [text]).rewards == [right]


def test_exact_without_a_pattern_compares_everything():
    assert ExactReward(None)([problem("yes")] * 3, [" yes\n", "yes!", "no"]).rewards == [1, 0, 0]


@pytest.mark.parametrize("pattern", ["A:(", "A:.*", "(a)(b)"])
def test_exact_refuses_a_bad_pattern(pattern):
    with pytest.raises(UserError, match=r"reward\.pattern"):
        ExactReward(pattern)


MATH = [
    ("42", "The answer is 42.", 1),
    ("42", "so \\boxed{42}", 1),
    ("42", "I think it is 41", 0),
    ("1/2", "$\\frac{1}{2}$", 1),
    ("\\frac{1}{2}", "it is 0.5", 1),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", 1),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi)}", 0),
    ("1234", "#### 1,234", 1),
    ("7", "no number at all", 0),
    ("7", "", 0),
]


def test_math_equivalence(math_reward):
    scores = math_reward([problem(a) for a, _, _ in MATH], [t for _, t, _ in MATH])
    assert scores.rewards == [r for _, _, r in MATH]
    assert (scores.timeouts, scores.errors) == (0, 0)


def slow(answer, text):
    """Stands in for a grading that never ends: a computation in C, which no alarm can break into."""
    if text == "slow":
        pow(3, 10**8)
    return text == answer


def test_a_time_out_is_counted_apart_and_the_others_are_graded(monkeypatch):
    monkeypatch.setattr("dash_exp.reward.math_equal", slow)
    reward = MathReward(timeout_s=0.5, workers=1)
    start = time.perf_counter()
    scores = reward([problem("7")] * 4, ["7", "slow", "8", "7"])
    reward.close()
    assert scores.rewards == [1, 0, 0, 1]
    assert (scores.timeouts, scores.errors) == (1, 0)
    assert time.perf_counter() - start < 60


def test_grading_works_in_any_thread(math_reward):
    found = []
    thread = threading.Thread(target=lambda: found.append(math_reward([problem("7")], ["it is 7"])))
    thread.start()
    thread.join(60)
    assert found[0].rewards == [1]
    assert found[0].timeouts == 0


def test_a_gold_answer_that_cannot_be_read_is_an_error_and_no_wrong_answer(math_reward):
    scores = math_reward([problem("")], ["it is 7"])
    assert (scores.rewards, scores.errors) == ([0], 1)


DOUBLE = Problem("d", "Double.", "", tests=("assert double(2) == 4", "assert double('a') == 'aa'"))


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


def test_code_is_graded_in_order_and_failures_are_counted_apart():
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


def test_code_without_bubblewrap_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.bubblewrap.cache_clear()
    with pytest.raises(UserError, match="apt install bubblewrap"):
        CodeReward()
    assert CodeReward(isolation="process")([DOUBLE], ["def double(x): return x * 2"]).rewards == [1]
    sandbox.bubblewrap.cache_clear()
