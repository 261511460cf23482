"""Settings of watch that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import watching

BAD = [
    ("+watch.nothing.policy=warn", "watch.nothing: is not a check"),
    ("watch.clipped=warn", "watch.clipped=warn: is not a section of settings. Write watch.clipped.policy=warn."),
    ("watch.kl_blowup.policy=panic", "watch.kl_blowup.policy=panic: is not known. Use one of off, warn, skip_step, stop"),
    (
        "watch.reward_collapse.policy=skip_step",
        "watch.reward_collapse.policy=skip_step: would keep the policy in the state that the check reports",
    ),
    (
        "watch.entropy_collapse.policy=skip_step",
        "watch.entropy_collapse.policy=skip_step: would keep the policy in the state that the check reports",
    ),
    ("+watch.mismatch.above=1", "watch.mismatch.above: there is no such setting. This check has policy"),
    ("watch.kl_blowup.above=0", "watch.kl_blowup.above=0: is not a number above 0"),
    (
        "watch.clipped.above=1",
        "watch.clipped.above=1: is not a number above 0 and below 1. Write a number above 0 and below 1.",
    ),
    ("watch.reward_collapse.window=1", "watch.reward_collapse.window=1: is not a whole number of at least 2"),
    (
        "watch.reward_collapse.below=1",
        "watch.reward_collapse.below=1: is not a number above 0 and below 1. Write a number above 0 and below 1.",
    ),
    ("watch.nonfinite.in_a_row=0", "watch.nonfinite.in_a_row=0: is not a whole number of at least 1"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(watching, [refusal(bad) for bad, _ in BAD])
