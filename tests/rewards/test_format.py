import pytest
from conftest import composed
from hydra.utils import instantiate
from problems import problem

from dash_exp.core.errors import UserError
from dash_exp.rewards.format import FormatReward

FORMAT = [
    ("<think>a</think><answer>b</answer>", 1),
    (" <think>two\nlines</think>\n\n<answer></answer>\n", 1),
    ("<think>a</think> so <answer>b</answer>", 0),
    ("<answer>b</answer><think>a</think>", 0),
    ("<think>a</think><think>a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think>a</think><answer>b</answer> or so", 0),
    ("<think>a</think><answer>b", 0),
    ("", 0),
]


def test_format():
    reward = instantiate(composed("reward=format").reward)
    assert reward([problem("b")] * len(FORMAT), [t for t, _ in FORMAT]).rewards == [r for _, r in FORMAT]


def test_format_with_a_bad_or_a_slow_pattern():
    for pattern in ("a(", None):
        with pytest.raises(UserError, match=r"reward\.pattern"):
            FormatReward(pattern)
    for pattern, wrong in (("", "matches only a completion without text"), ("(?!)", "matches no completion")):
        with pytest.raises(UserError, match=wrong):
            FormatReward(pattern)
    scores = FormatReward("(a|a)*b", timeout_s=0.05)([problem("")] * 2, ["a" * 40 + "cb", "aab"])
    assert (scores.rewards, scores.timeouts) == ([0, 1], 1)
