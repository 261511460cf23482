"""Data sets that are refused."""

import pytest
from conftest import composed
from omegaconf import OmegaConf
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.core.errors import UserError
from dash_exp.settings import data

MORE = "+test@data.tests.more=jsonl data.tests.more.path=d"
BAD = [
    ("data.tests.in_dist=null", "data.tests.in_dist: is null"),
    (
        "data.name=null",
        "data.name=null: is not a text. Write one line of text; what looks like a number takes quotes, '\"3\"'.",
    ),
    (
        "data.tests.in_dist=3",
        "data.tests.in_dist=3: is not a data set. Write null, or choose one: +test@data.tests.in_dist=gsm8k.",
    ),
    ("data.train=3", "data.train=3: is not a data set. Write null, or choose another data set: data=gsm8k."),
    (
        "+data.train.reward=math",
        "data.train.reward: is not read: training has that of the run. Write reward=NAME instead.",
    ),
    (
        "+data.train.max_response_tokens=8",
        "data.train.max_response_tokens: is not read: training has that of the run. Write rollout.max_response_tokens=N",
    ),
    (
        "+data.tests.in_dist.max_response_tokens=0",
        "data.tests.in_dist.max_response_tokens=0: is not a whole number of at least 1",
    ),
    ("data.separator=3", "data.separator=3: is not a text"),
    ("data.limit=0", "data.limit=0: is not a whole number of at least 1. Write a whole number of at least 1 or null"),
    ("data=gsm8k data.train.annotations=yes", "data.train.annotations=yes: is neither true nor false"),
    ("data=jsonl data.path=d data.extra=level", "data.extra=level: is not a list of names. Write it in brackets"),
    ("data=jsonl data.path=d data.prompt=3", "data.prompt=3: is not a text"),
    ("data=jsonl data.path=d data.prompt=null", "data.prompt=null: is not a text"),
    ("data=jsonl data.path=d data.test_split=null", "data.test_split=null: is not a text"),
    ("data=verl data.path=d data.optional=level", "data.optional=level: is not a list of names. Write it in brackets"),
    (f"{MORE} data.tests.more.prompt=3", "data.tests.more.prompt=3: is not a text"),
    (f"{MORE} data.tests.more.answer=3", "data.tests.more.answer=3: is not a text"),
    (f"{MORE} data.tests.more.extra=a", "data.tests.more.extra=a: is not a list of names"),
    ("+test@data.tests.more=jsonl", "data.tests.more.path: is not given. Add data.tests.more.path=... to the command"),
    (
        f"data=jsonl data.path={__file__}",
        f"data.path={__file__}: is one file, for training and test. Add data.test_path=FILE, or",
    ),
    ("data.tests.out_dist.form=symbols", "data.tests.out_dist: is the same test set as data.tests.in_dist"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


@pytest.mark.parametrize("name", ["answer", "solution", "id", "subset"])
def test_fields_that_may_be_null(name):
    assert refusal(f"data=jsonl data.path=d data.{name}=null") is None
    assert refusal(f"{MORE} data.tests.more.{name}=null") is None


def a_name_with_a_slash() -> UserError | None:
    cfg = composed()
    test = {**cfg.data.tests.in_dist, "size": 3}
    OmegaConf.update(cfg, "data.tests.a/b", test, force_add=True)  # as a file may write it; the command line cannot
    return refusal_of(cfg)


def test_a_test_set_with_a_slash_in_its_name():
    assert_refused(a_name_with_a_slash(), "data.tests.a/b: has a / in its name, which separates the parts of a metric's name")


def test_every_refusal_has_a_case():
    assert_each_is_met(data, [*(refusal(bad) for bad, _ in BAD), a_name_with_a_slash()])
