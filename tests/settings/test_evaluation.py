"""Settings of eval that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import evaluation

BAD = [
    ("eval.n=-1", "eval.n=-1"),
    ("eval.n=2 eval.k=[1,4]", "eval.k=[1, 4]: pass@4 is not defined with eval.n=2"),
    ("eval.k=1", "eval.k=1: is not a list. Write eval.k=[1,8]."),
    ("eval.top_p=1.5", "eval.top_p=1.5: is not a number above 0 and at most 1: it is a share of the probability"),
    ("eval.every=0", "eval.every=0"),
    ("eval.n=2 eval.k=[1,1]", "eval.k=[1, 1]: has a number twice"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(evaluation, [refusal(bad) for bad, _ in BAD])
