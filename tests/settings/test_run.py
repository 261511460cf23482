"""Settings of the run as a whole that are refused."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import run

BAD = [
    ("plan=h200", "plan=h200: is neither true nor false"),
    ("plan_device=h300", "plan_device=h300: is not known. Use one of a100, h100, h200"),
    ("plan_tokens=0", "plan_tokens=0: is not a whole number of at least 1"),
    (
        "resume_every=10min",
        "resume_every=10min: does not say how often. Write a whole number of outer steps (5), a time (90s, 10m, 2h) or a share "
        "of the run's time (5%), or null.",
    ),
    ("resume_every=0", "resume_every=0: does not say how often"),
    (
        "checkpoints=[last,first]",
        "checkpoints=['last', 'first']: is not a list of last and best. Write checkpoints=[last,best], ",
    ),
    ("checkpoints=last", "checkpoints=last: is not a list of last and best"),
    ("checkpoints=null", "checkpoints=null: is not a list of last and best"),
    ("steps=0", "steps=0: is not a whole number of at least 1"),
    ("steps=2.5", "steps=2.5"),
    ("steps=many", "steps=many"),
    ("seed=-1", "seed=-1"),
    ("logger.wandb=3", "logger.wandb=3: is not a section of settings with _target_. Write null, or leave it as in conf/."),
    ("name=", "name='': is not a text. Write one line of text; what looks like a number takes quotes, '\"3\"'."),
    ("name=3", "name=3: is not a text. Write one line of text; what looks like a number takes quotes, '\"3\"'."),
    ("name=a/b", "name=a/b: is not a folder's name. Write one without / that does not start with . or ~."),
    ("name=/tmp/x", "name=/tmp/x: is not a folder's name. Write one without / that does not start with . or ~."),
    ("name=..", "name=..: is not a folder's name. Write one without / that does not start with . or ~."),
    ("seed=4294967296", "seed=4294967296: is not a whole number of at least 0 and below 4294967296"),
    ("seed=1.0", "seed=1.0: is not a whole number"),
    ("steps=[3]", "steps=[3]: is not a whole number"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(run, [refusal(bad) for bad, _ in BAD])


@pytest.mark.parametrize("good", ["5", "10m", "1.5h", "5%", "null"])
def test_how_often_can_be_written_on_the_command_line(good):
    run.values(composed(f"resume_every={good}"))
