import pytest
from conftest import composed
from hydra.utils import instantiate
from problems import SEVEN, problem

from dash_exp.core.errors import UserError
from dash_exp.rewards.base import Scores, correct
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.sums import SumReward


class Fixed:
    """A reward that gives what it is told, and remembers that it was closed."""

    def __init__(self, rewards, **scores):
        self.scores, self.closed = Scores(rewards, **scores), False

    def __call__(self, problems, texts):
        return self.scores

    def close(self):
        self.closed = True


def test_a_sum_of_rewards():
    right, form = Fixed([1.0, 0.0, 1.0], timeouts=1), Fixed([1.0, 1.0, 0.0], timeouts=2, errors=3)
    reward = SumReward({"right": right, "form": form}, {"right": 1, "form": 0.1}, correct="right")
    scores = reward([problem("")] * 3, [""] * 3)
    assert scores.rewards == pytest.approx([1.1, 0.1, 1.0])
    assert scores.components == {"right": [1, 0, 1], "form": [1, 1, 0]}
    assert (scores.timeouts, scores.errors) == (3, 3)
    assert correct(scores, reward) == [True, False, True]
    reward.close()
    assert right.closed
    assert form.closed


def test_sums_that_are_equal_on_paper_are_equal():
    # in floating point 0.1 + 0.2 - 0.3 is 5.6e-17 and 0.7 + 0.2 + 0.1 is 1 - 1.1e-16
    parts = {name: Fixed([value, 0.0]) for name, value in {"a": 0.1, "b": 0.2, "c": 0.3}.items()}
    assert SumReward(parts, {"a": 1, "b": 1, "c": -1}, correct="a")([problem("")] * 2, [""] * 2).rewards == [0, 0]
    parts = {name: Fixed([1.0]) for name in "abc"}
    assert SumReward(parts, {"a": 0.7, "b": 0.2, "c": 0.1}, correct="a")([problem("")], [""]).rewards == [1]


def test_sums_may_be_nested_and_take_the_answers_of_what_decides():
    exact = ExactReward("A:(.)")
    inner = SumReward({"exact": exact, "one": Fixed([1.0, 1.0])}, {"exact": 2, "one": 1}, correct="exact")
    outer = SumReward({"inner": inner, "less": Fixed([1.0, 0.5])}, {"inner": 1, "less": -1}, correct="inner")
    scores = outer([problem("7")] * 2, ["A:7", "A:8"])
    assert scores.rewards == [2, 0.5]
    assert scores.components["inner/exact"] == [1, 0]
    assert correct(scores, outer) == [True, False]
    assert outer.answers(["A:7", "8"]) == ["7", None]
    assert not hasattr(SumReward({"one": Fixed([1.0])}, {"one": 1}, correct="one"), "answers")


@pytest.mark.parametrize(
    ("weights", "decides", "says"),
    [
        ({"a": 1}, "a", "has no weight for b"),
        ({"a": 1, "b": 1, "c": 1}, "a", r"reward\.weights\.c: there is no part"),
        ({"a": 1, "b": float("nan")}, "a", r"reward\.weights\.b=nan: is not a finite number"),
        ({"a": 1, "b": None}, "a", r"reward\.weights\.b=None"),
        ({"a": 1, "b": True}, "a", r"reward\.weights\.b=True"),
        ({"a": 1, "b": 1}, "c", r"reward\.correct=c: is not a part"),
    ],
)
def test_sums_that_cannot_be(weights, decides, says):
    with pytest.raises(UserError, match=says):
        SumReward({"a": Fixed([]), "b": Fixed([])}, weights, decides)


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"^reward\.weights: are all 0"):
        SumReward({"exact": ExactReward(None)}, {"exact": 0.0}, "exact")


def test_a_part_of_a_sum_must_not_hide_the_sum():
    with pytest.raises(UserError, match=r"^reward\.parts\.mean"):
        SumReward({"mean": ExactReward(None)}, {"mean": 1.0}, "mean")


def test_a_part_that_is_not_finite_leaves_the_others_of_a_sum():
    def unknown(problems, texts):
        return Scores([float("nan")] * len(texts))

    reward = SumReward({"exact": ExactReward(None), "unknown": unknown}, {"exact": 1.0, "unknown": 1.0}, "exact")
    scores = reward([SEVEN] * 2, ["7", "8"])
    assert (scores.rewards, scores.errors) == ([1, 0], 2)
    huge = SumReward({"exact": ExactReward(None)}, {"exact": 1e308}, "exact")
    scores = SumReward({"huge": huge}, {"huge": 10.0}, "huge")([SEVEN], ["7"])
    assert (scores.rewards, scores.errors) == ([0], 1)


def test_math_and_format_from_the_configuration():
    reward = instantiate(composed("reward=math_format", "reward.weights.format=0.5", "reward.parts.math.workers=1").reward)
    texts = ["<think>6*7</think> <answer>42</answer>", "<answer>42</answer>", "<think>1</think> <answer>1</answer>", "42"]
    texts += ["<think><answer>42</answer></think>", "<think><answer>1</answer></think> <answer>42</answer>"]
    texts += ["<answer>She has 42 apples.</answer>", "<answer>42</answer><answer>1</answer>"]
    texts += ["<think>So <answer>42</answer>", "<think>a</think><think>b<answer>42</answer>", "<answer>42</answer> <think>No"]
    scores = reward([problem("42")] * len(texts), texts)
    town = reward([problem("New York")], ["<think>Hm.</think><answer>New York</answer>"])
    reward.close()
    assert scores.rewards == [1.5, 1, 0.5, 0, 0, 1.5, 0, 0, 0, 0, 0]
    assert correct(scores, reward) == [True, True, False, False, False, True, *[False] * 5]
    assert town.rewards == [1.5]
