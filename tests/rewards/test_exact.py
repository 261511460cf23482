import pytest
from problems import problem

from dash_exp.core.errors import UserError
from dash_exp.rewards.exact import ExactReward


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


def test_exact_answers():
    assert ExactReward(r"A:\s*(\S+)").answers(["A:7 A: 8", "no"]) == ["8", None]
    assert ExactReward(None).answers([" yes\n"]) == ["yes"]
