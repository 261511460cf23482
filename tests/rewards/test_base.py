import pytest
import torch
from problems import DOUBLE, problem

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores, check_problems
from dash_exp.rewards.code import CodeReward
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.format import FormatReward
from dash_exp.rewards.math import MathReward
from dash_exp.rewards.reasoning_gym import ReasoningGymReward
from dash_exp.rewards.sums import SumReward


def test_problems_that_a_reward_cannot_grade_are_refused_before_anything_runs():
    code, exact = CodeReward(isolation="process"), ExactReward(None)
    check_problems(code, [DOUBLE])
    check_problems(exact, [problem("7")])
    check_problems(FormatReward(".*"), [DOUBLE, problem("7")])
    with pytest.raises(UserError, match=r"^data, problem p: has no tests for its program"):
        check_problems(SumReward({"code": code}, {"code": 1.0}, "code"), [DOUBLE, problem("7")])
    for reads in (exact, MathReward()):
        with pytest.raises(
            UserError, match=r"^data\.tests\.c, problem d: asks .* reads an answer.*\+reward@data\.tests\.c\.reward=code\."
        ):
            check_problems(reads, [problem("7"), DOUBLE], "data.tests.c")
    with pytest.raises(UserError, match="rewards of programs and of answers"):
        SumReward({"code": code, "exact": exact}, {"code": 1.0, "exact": 1.0}, "code")


def test_a_reward_that_compares_with_answers_refuses_problems_without_one():
    answered, open_ended = problem("7"), problem("")
    whole, form = ExactReward(None), FormatReward(".*")
    both = SumReward({"exact": whole, "format": form}, {"exact": 1.0, "format": 1.0}, "format")
    for reward in (whole, MathReward(), both):
        with pytest.raises(
            UserError, match=r"^data\.tests\.o, problem p: has no answer.*\(data\.answer\).*\+reward@data\.tests\.o"
        ):
            check_problems(reward, [answered, open_ended], "data.tests.o")
    with pytest.raises(UserError, match=r"has no answer.*\. Name the field"):
        check_problems(whole, [Problem("p", "?", "", extra={"task": "mine"})])
    of_task = Problem("p", "?", "", extra={"task": "leg_counting", "metadata": {}, "options": {}})
    with pytest.raises(UserError, match=r"^data, problem p: has no answer.*\. Use reward=reasoning_gym\.$"):
        check_problems(whole, [of_task])
    own_scorer = ReasoningGymReward(workers=1)
    of_tasks = SumReward({"gym": own_scorer, "format": form}, {"gym": 1.0, "format": 1.0}, "format")
    for reward in (form, of_tasks, lambda problems, texts: Scores([1.0] * len(texts))):
        check_problems(reward, [answered, open_ended])


def test_problems_in_which_no_completion_can_be_right(caplog):
    digits = ExactReward(r"A:\s*(\d+)")
    for reward in (digits, SumReward({"exact": digits, "format": FormatReward(".*")}, {"exact": 1.0, "format": 1.0}, "exact")):
        with pytest.raises(UserError, match=r"^data\.train: in 2 of 2 problems no .*: 2 whose answer the pattern .* 'x = 1'\."):
            check_problems(reward, [problem("x = 1"), problem("y")], "data.train")
        caplog.clear()
        check_problems(reward, [problem("7"), problem("x" * 99)], "data.tests.in_dist")
        said = "data.tests.in_dist: in 1 of 2 problems no completion can be correct: 1 whose answer the pattern cannot give"
        assert said in caplog.text
        assert "x" * 61 not in caplog.text
    caplog.clear()
    check_problems(digits, [problem("7")])
    check_problems(digits, [])
    assert not caplog.text


def test_a_reward_that_is_not_finite_is_an_error():
    nan, inf = float("nan"), float("inf")
    scores = Scores([1.0, nan, -inf, 0.5], errors=1, components={"a": [nan, nan, 1.0, 1.0], "b": [1.0] * 4})
    assert scores.rewards == [1, 0, 0, 0.5]
    assert scores.components == {"a": [0, 0, 1, 1], "b": [1] * 4}
    assert scores.errors == 1 + 3
    assert torch.tensor(scores.rewards).isfinite().all()
