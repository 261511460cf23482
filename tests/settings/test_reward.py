"""Rewards that are refused, of the run and of test sets."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import reward

LONG = "+test@data.tests.long=arithmetic data.tests.long.size=3"
OF_LONG = "data.tests.long.reward"
BAD = [
    ("reward.timeout_s=0", "reward.timeout_s=0: is not a number above 0"),
    ("reward=math_format reward.parts.math.workers=0", "reward.parts.math.workers=0: is not a whole number of at least 1"),
    (f"{LONG} {OF_LONG}.timeout_s=0", f"{OF_LONG}.timeout_s=0: is not a number above 0"),
    (f"{LONG} {OF_LONG}=math", f"{OF_LONG}=math: is not a reward. Write reward@{OF_LONG}=math, with + in front if the test"),
    (f"{LONG} +{OF_LONG}.patern=x", f"{OF_LONG}.patern: dash_exp.rewards.exact.ExactReward has no such setting. Did you mean"),
    (f"{LONG} {OF_LONG}._target_=os.nothing", f"{OF_LONG}._target_=os.nothing: there is no nothing in os"),
    (
        "+data.tests.in_dist.reward=3",
        "data.tests.in_dist.reward=3: is not a reward. Write reward@data.tests.in_dist.reward=math",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(reward, [refusal(bad) for bad, _ in BAD])


def test_rewards_with_equal_settings_are_one():
    assert list(reward.different(composed())) == ["reward"]
    assert list(reward.different(composed(*LONG.split()))) == ["reward"]  # both reward=exact
    cfg = composed(*LONG.split(), "+test@data.tests.code=mbpp", f"{OF_LONG}.pattern='(x)'")
    assert list(reward.different(cfg)) == ["reward", OF_LONG, "data.tests.code.reward"]
    cfg.data.tests.code = None
    assert list(reward.different(cfg)) == ["reward", OF_LONG]
