"""Settings of the teacher that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import teacher

BAD = [
    ("teacher.tries=0", "teacher.tries=0"),
    ("algo=sft_m algo.train_sampler.teacher.tries=0", "algo.train_sampler.teacher.tries=0: is not a whole number"),
    ("algo=sft_m algo.train_sampler.teacher.template=x", "has no place for the problem"),
    ("algo=sft_m teacher.template=x", "teacher.template=x: has no place for the problem. Put {prompt} into it"),
    ("algo=sft_m teacher=itself model=tiny_random", "teacher.template=null: the policy starts from random weights"),
    ("algo=sft_m teacher=itself teacher.chat=true", "teacher.chat=true: has no effect where teacher.template is null"),
    (
        "algo=sft_m teacher.temperature=0",
        "teacher.tries=4: makes no difference at temperature 0, where every try gives the same trace",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(teacher, [refusal(bad) for bad, _ in BAD])
