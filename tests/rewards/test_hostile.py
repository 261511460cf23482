"""Hostile completions through every reward: none earns a 1 or ends the program, and the others are graded as ever."""

import hostile
import pytest
from conftest import composed, save_scorer
from hydra.utils import instantiate
from problems import DOUBLE, SEVEN, between, graded

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.code import CodeReward
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.format import FormatReward
from dash_exp.rewards.math import MathReward
from dash_exp.rewards.model import ModelReward

MB = 1_000_000


def earned(scores, texts):
    return {text[:100] for text, reward in zip(texts, scores.rewards, strict=True) if reward}


def test_there_are_many():
    assert len(hostile.TEXTS) + len(hostile.LARGE) >= 80
    assert len(hostile.PROGRAMS) >= 30


def test_exact():
    texts = hostile.texts(MB)
    reward = instantiate(composed("reward=exact").reward)
    scores = graded(reward, SEVEN, texts, "A: 7", "A: 8")
    assert earned(scores, texts) == set()
    assert (scores.timeouts, scores.errors) == (0, 0)
    assert len(reward.answers(texts)) == len(texts)


def test_exact_with_an_exponential_pattern():
    texts = hostile.texts(MB)
    reward = ExactReward(r"((?:a|a)*[bQ])", timeout_s=0.2)
    scores = graded(reward, Problem("q", "?", "Q"), texts, "Q", "b")
    assert earned(scores, texts) == set()
    assert (scores.timeouts, scores.errors) == (2, 0)  # "for a pattern", "one word after a fence"
    assert reward.answers([hostile.TEXTS["for a pattern"](), "Q"]) == [None, "Q"]


def test_format():
    texts = hostile.texts(MB)
    right, wrong = "<think>1</think><answer>7</answer>", "<think>1</think>"
    scores = graded(instantiate(composed("reward=format").reward), SEVEN, texts, right, wrong)
    assert earned(scores, texts) == set()
    assert scores.errors == 0
    scores = graded(FormatReward("(a|a)*b|7", timeout_s=0.2), SEVEN, texts, "7", "8")
    assert scores.timeouts == 1
    assert earned(scores, texts) == set()


def test_math():
    texts = [*hostile.texts(MB // 40), hostile.LARGE["one word in a box"](MB)]
    reward = MathReward(timeout_s=1.0, workers=2)
    scores = graded(reward, SEVEN, texts, r"\boxed{7}", r"\boxed{9}")
    reward.close()
    assert earned(scores, texts) == set()
    assert (scores.timeouts, scores.errors) == (0, 0)  # what would take long is not evaluated


def test_math_and_format():
    """The pattern of the tags takes time to the square of the length of a text full of them."""
    texts = [*hostile.texts(MB), "<answer>7" * 1000, "<answer>7</answer>\ud800<answer>8</answer>"]
    reward = instantiate(composed("reward=math_format", "reward.parts.math.timeout_s=0.5").reward)
    scores = graded(Correct(reward), SEVEN, texts, "<think>1</think><answer>7</answer>", "<answer>8</answer>")
    reward.close()
    assert earned(scores, texts) == set()
    assert scores.timeouts >= 1
    assert scores.errors == 0


class Correct:
    """The part of a sum that decides, as reward."""

    def __init__(self, reward):
        self.reward = reward

    def __call__(self, problems, texts):
        scores = self.reward(problems, texts)
        assert scores.rewards == pytest.approx([a + 0.1 * b for a, b in zip(*scores.components.values(), strict=True)])
        return Scores(scores.components[self.reward.correct], scores.timeouts, scores.errors)


ENDLESS_PROGRAMS = ("sleeps", "sleeps in the function", "ignores signals", "computation in C", "endless output")


def test_code(bubblewrap):
    texts = [*hostile.texts(MB), *(build() for build in hostile.PROGRAMS.values())]
    reward = CodeReward(timeout_s=1.5, workers=3)
    asked = [*texts, *["def double(x): return x + x", "def double(x): return 3"] * 3]
    scores = reward([DOUBLE] * len(asked), asked)
    assert scores.rewards[-6:] == [1, 0] * 3
    assert earned(Scores(scores.rewards[:-6]), texts) == set()
    assert len(ENDLESS_PROGRAMS) <= scores.timeouts < 12
    assert scores.errors == 0


def test_model(tmp_path):
    texts = [*hostile.texts(MB // 20), hostile.LARGE["one letter"](MB)]
    reward = ModelReward(str(save_scorer(tmp_path)), device="cpu", accept_above=-1.0)
    alone = reward([SEVEN], ["7"]).rewards
    asked = between(texts, "7", "7")
    scores = reward([SEVEN] * len(asked), asked)
    assert scores.rewards[1::3] == pytest.approx(alone * len(texts), abs=1e-4)
    broken = [t for t in texts if len(reward.tokenizer("?" + t.encode(errors="replace").decode()).input_ids) > 2048]
    surrogates = [t for t in texts if t.encode(errors="ignore").decode() != t]
    assert len(surrogates) == 2
    assert scores.errors == len(broken) + len(surrogates)
    assert [r == 0 for r in scores.rewards[::3]] == [t in broken or t in surrogates for t in texts]
