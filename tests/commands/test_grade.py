"""`python -m dash_exp.grade`: how one answer is graded."""

import io
import sys

import pytest

from dash_exp.commands import grade
from dash_exp.core.errors import UserError


@pytest.fixture
def printed(monkeypatch, capsys):
    """What the command prints for these arguments."""

    def of(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["grade", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        grade.main()
        return capsys.readouterr().out.splitlines()

    return of


def test_the_answer_that_is_read_and_the_reward_are_shown(printed):
    right = ["answer      17", "read        17", "reward      1   (correct)"]
    assert printed("17", r"It is \boxed{17}, I think.") == right
    assert printed("17", "-", stdin="First 3.\nThe answer is 17.") == right
    assert printed("17", "I do not know") == ["answer      17", "read        no answer", "reward      0   (not correct)"]
    thought = "<think>The answer is 5.</think>"
    assert printed("1/2", thought + r"<answer>\frac{1}{2}</answer>")[1:] == ["read        0.5", right[2]]
    assert printed("5", thought + "She has 12 apples.")[1:] == ["read        12", "reward      0   (not correct)"]
    assert printed("x=5", "x=6")[-1] == "reward      0   (not correct)"  # a text with = is no setting


def test_any_reward_with_any_of_its_settings(printed):
    assert printed("17", "A:17", "reward=exact")[-1] == "reward      1   (correct)"
    assert printed("17", "<a>17</a> 5", "reward.pattern='<a>(.*)</a>'")[1:] == ["read        17", "reward      1   (correct)"]
    parts = printed("17", "<think>t</think> <answer>16</answer>", "reward=math_format")
    assert parts[2:] == ["reward      0.1   (not correct)", "math        0", "format      1"]


def test_an_answer_that_cannot_be_read_is_named(printed):
    assert printed(r"\int_0^", "5", "reward=math")[0] == r"answer      \int_0^   (whose answer cannot be read as mathematics)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["5"], "the completion is missing"),
        (["5", "reward=exact"], "the completion is missing"),
        (["5", "the", "answer"], "is not of the form name=value"),
        (["5", "def f(): return 5", "reward=code"], "grades programs"),
    ],
)
def test_what_cannot_be_graded_is_refused(arguments, says, printed):
    with pytest.raises(UserError, match=says):
        printed(*arguments)
