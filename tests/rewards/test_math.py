import threading
import time

import hostile
import pytest
from problems import problem

from dash_exp.core.errors import UserError
from dash_exp.rewards.base import check_problems
from dash_exp.rewards.math import MathReward


@pytest.fixture(scope="module")
def math_reward():
    reward = MathReward(timeout_s=20, workers=2)
    yield reward
    reward.close()


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


def test_a_time_out_is_counted_apart_and_the_others_are_graded(monkeypatch):
    monkeypatch.setattr("dash_exp.rewards.math.math_equal", hostile.grade)
    reward = MathReward(timeout_s=2, workers=1)
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


SAME_ANSWERS = [
    ["it is 0.5", "\\boxed{\\frac{1}{2}}", "1/2", "so $x = 0.5$", "50%"],
    ["#### 1,234", "\\boxed{1234}", "1234.0"],
    ["$\\sqrt{8}$", "$2\\sqrt{2}$"],
    ["$\\{1, 2\\}$", "$\\{2, 1\\}$"],
    ["$(1, \\frac{1}{2})$", "\\boxed{(1, 0.5)}"],
    ["$(x+1)^2$", "$x^2+2x+1$"],
    ["12345678901234567890"],
    ["12345678901234567891"],
    ["$\\infty$"],
    ["\\boxed{\\text{Evelyn}}"],
    ["$(1, 2)$"],
    ["$(2, 1)$"],
]


def test_math_answers_are_spelled_alike_where_they_are_equal(math_reward):
    texts = [t for same in SAME_ANSWERS for t in same]
    found = dict(zip(texts, math_reward.answers(texts), strict=True))
    spellings = [{found[t] for t in same} for same in SAME_ANSWERS]
    assert all(len(s) == 1 for s in spellings), spellings
    assert len(set.union(*spellings)) == len(SAME_ANSWERS)
    assert math_reward.answers(["no number at all", ""]) == [None, None]


def test_an_answer_that_takes_too_long_to_read_has_no_vote(monkeypatch):
    monkeypatch.setattr("dash_exp.rewards.math.math_answer", hostile.answer)
    reward = MathReward(timeout_s=2, workers=1)
    assert reward.answers(["7", "slow", "8"]) == ["7", None, "8"]
    reward.close()


TAGGED = [("<think>it is 7 </think> <answer>42</answer>", 1), ("42", 0), ("<answer>42</answer> <answer>43</answer>", 0)]


def test_math_within_tags():
    reward = MathReward(workers=1, pattern=r"(?s)<answer>(.*?)</answer>")
    texts = [t for t, _ in TAGGED]
    assert reward([problem("42")] * 3, texts).rewards == [r for _, r in TAGGED]
    assert reward.answers(texts) == ["42", None, "43"]
    reward.close()


def test_golds_that_cannot_be_read_are_told_before_a_run(math_reward, caplog):
    check_problems(math_reward, [problem("7"), problem("x + 1"), problem(r"\frac{1}{")])
    assert "in 1 of 3 problems no completion can be correct: 1 whose answer cannot be read" in caplog.text
    with pytest.raises(UserError, match=r"^data: in 2 of 3 problems no .* such as p with the answer '\$\$'"):
        check_problems(math_reward, [problem("7"), problem("$$"), problem(r"\frac{1}{")])
