import pytest
from problems import problem

from dash_exp.core.errors import UserError
from dash_exp.rewards.length import LengthReward


def test_the_share_of_the_limit_at_most_one():
    scores = LengthReward(4)([problem("7")] * 4, ["", "a", "abcd", "abcdefgh"])
    assert scores.rewards == [0, 0.25, 1, 1]


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "4"])
def test_a_limit_that_is_none(limit):
    with pytest.raises(UserError, match=rf"^reward\.limit={limit}: is not a whole number of at least 1"):
        LengthReward(limit)
