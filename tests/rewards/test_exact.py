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


@pytest.mark.parametrize(("pattern", "text"), [("(.*)", "7"), (r"(\d*)", "it is 7 then"), ("(.*)", "7\n"), ("(?s)(.*)", "7\n")])
def test_a_match_of_no_character_does_not_count(pattern, text):
    """These patterns have one at the end of every text, after the answer."""
    assert ExactReward(pattern)([problem("7")], [text]).rewards == [1]


@pytest.mark.parametrize(
    ("pattern", "answer", "can"),
    [
        (r"A:\s*(\S+)", "7", True),
        (r"A:\s*(\S+)", "1 1/2", False),  # read as 1
        (r"#### (\d+)", "-3", False),
        (r"(\d)+", "42", False),  # a repeated group gives its last digit
        ("(?s)<answer>(.*?)</answer>", "two\nlines", True),
        ("(?i:is (yes|no))", "Yes", True),
        (r"[(](\d+)[)]", "12", True),
        (r"\((?P<answer>[^)]+)\)", "a)", False),
        (r"A:( \d+)", "7", True),  # white space around it does not count
        (r"(\d+(?= apples))", "7", True),  # not known: what stands behind it decides
        ("(A|B|C|D)", "E", False),
        (None, "anything at all", True),
    ],
)
def test_whether_a_pattern_can_give_an_answer(pattern, answer, can):
    assert (ExactReward(pattern).hopeless([problem(answer)]) == [None]) == can


def test_exact_answers():
    assert ExactReward(r"A:\s*(\S+)").answers(["A:7 A: 8", "no"]) == ["8", None]
    assert ExactReward(None).answers([" yes\n"]) == ["yes"]
