"""Settings that hold a secret are refused, and the secret is not shown."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal_of

from dash_exp.settings import credentials

SECRET = "not-to-be-shown"
BAD = [
    ("+own.env_set.HF_TOKEN=abc", "own.env_set.HF_TOKEN: would be written into the run folder. Set it in the shell instead"),
    ("data=gsm8k data.path=https://me:pass@host/data", "data.path: holds a password, and every setting is written into"),
    (
        "data=gsm8k data.path=${oc.env:SOME_TOKEN}",
        "data.path: holds the value of SOME_TOKEN, and every setting is written into",
    ),
]


@pytest.fixture(autouse=True)
def a_secret(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", SECRET)


def refused(bad: str):
    return refusal_of(composed(*bad.split()))


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_secrets_are_refused_and_not_shown(bad, message):
    error = refused(bad)
    assert_refused(error, message)
    assert SECRET not in str(error)
    assert ":pass@" not in str(error)


def test_every_refusal_has_a_case():
    assert_each_is_met(credentials, [refused(bad) for bad, _ in BAD])
