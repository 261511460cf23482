"""Settings of study and budget that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import study

BAD = [
    ("budget.seconds=0", "budget.seconds=0: is not a number above 0"),
    ("budget.optimizer_steps=1.5", "budget.optimizer_steps=1.5: is not a whole number"),
    ("budget.match=hours study.baseline=['algo=dash']", "budget.match=hours: is not known. Use one of seconds, sampled_tokens"),
    (
        "budget.match=seconds",
        "budget.match=seconds: stops the arms of a sweep where its baseline stopped, and there is no baseline",
    ),
    ("study.baseline=grpo", "study.baseline=grpo: is not a list. Write the arm's overrides, as in study.baseline=[algo=grpo]."),
    ("study.target=0", "study.target=0: is not a number above 0"),
    ("study.baseline=[1]", "study.baseline=[1]: 1 is not an override. Write them as in [algo=grpo]."),
    (
        "study.target=90",
        "study.target=90: is not a number above 0 and at most 1: it is an accuracy, a fraction such as 0.9.",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(study, [refusal(bad) for bad, _ in BAD])
