"""Parts that do not exist, or do not take the settings given to them."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import targets

BAD = [
    ("~algo.advantage._target_", "algo.advantage._target_: is missing. Write module.name"),
    (
        "algo.loss._target_=dash_exp.algo.ppo_clip",
        "algo.loss._target_=dash_exp.algo.ppo_clip: is the name of an earlier version. "
        "Write dash_exp.algorithms.losses.ppo_clip.",
    ),
    (
        "algo.loss._target_=dash_exp.algorithms.advantages.raw",
        "algo.loss._target_=dash_exp.algorithms.advantages.raw: is not a loss function. Choose one that takes logprobs_BT.",
    ),
    (
        "algo.loss._target_=dash_exp.algorithms.losses.ppo_clop",
        "algo.loss._target_=dash_exp.algorithms.losses.ppo_clop: does not exist. Use dash_exp.algorithms.losses.ppo_clip.",
    ),
    (
        "filter._target_=dash_exp.filters.X",
        "filter._target_=dash_exp.filters.X: does not exist. Choose a file of its group in conf/.",
    ),
    ("kl.schedule._target_=nowhere.at.all", "there is no module nowhere.at"),
    ("rollout.sampler._target_=null", "rollout.sampler._target_=null: is not a function or class"),
    (
        "filter=none +filter.threshold=0.1",
        "filter.threshold: dash_exp.algorithms.filters.KeepAll has no such setting. It has none",
    ),
    ("+kl.schedule.final=0.1", "kl.schedule.final: dash_exp.algorithms.kl.Constant has no such setting. It has coef, steps"),
    ("+data.train.sise=3", "data.train.sise: dash_exp.data.arithmetic.generate has no such setting. Did you mean size? It has"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(targets, [refusal(bad) for bad, _ in BAD])
