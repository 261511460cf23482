"""Settings of algo, filter, kl and batch that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import algorithm

BAD = [
    ("kl.estimator=k4", "kl.estimator=k4: is not known. Use one of k1, k2, k3"),
    ("kl.place=nowhere", "kl.place=nowhere: is not known"),
    (
        "kl.estimator=k1",
        "kl.estimator=k1: has a gradient that is 0 on average when it is part of the loss. Use k2 or k3, or kl.place=reward.",
    ),
    ("batch.epochs=0", "batch.epochs=0"),
    ("batch.epochs=2", "algo=dash has no ratio to correct for it. Use algo=ppo_multi or ppo_mini"),
    ("algo=ppo_mini batch.minibatches=513", "batch.minibatches=513: is more than the 512 completions of an outer step"),
    (
        "filter=quantile filter.drop=1",
        "filter.drop=1: is not a number of at least 0 and below 1: it is a share, and 1 would drop everything. Write",
    ),
    (
        "filter=cppo filter.prune=1.5",
        "filter.prune=1.5: is not a number of at least 0 and below 1: it is a share, and 1 would drop everything. Write",
    ),
    ("filter=pods filter.per_group=9", "filter.per_group=9: is more than the 8 completions of a group"),
    ("filter=zero_variance batch=coupled", "filter.refill_rounds=3: refills a whole outer step, but batch.sample_prompts=2"),
    (
        "algo=ppo_mini batch=coupled",
        "batch.epochs=1, batch.minibatches=32: use the completions of a whole outer step, but batch.sample_prompts",
    ),
    ("algo=ppo_multi algo.loss.clip_low=0", "algo.loss.clip_low=0: is not a number above 0"),
    ("algo=sft_h algo.loss._target_=dash_exp.algorithms.losses.ppo_clip", "written traces have none"),
    ("algo=sft_h kl.coef=0.1 kl.place=reward", "kl.place=reward: needs completions of the policy"),
    ("kl=adaptive kl.coef=0", "kl.coef=0: can never grow"),
    ("algo=sft_h filter=zero_variance", "filter=zero_variance: keeps nothing"),
    ("algo=reinforce batch.group_size=1 filter=zero_variance", "filter=zero_variance: keeps nothing"),
    ("algo=sft_m rollout.truncated=penalize", "would unlearn written traces"),
    (
        "kl=adaptive kl.schedule.rate=5",
        "kl.schedule.rate=5: is not a number above 0 and below 5: from 5 on one step can take the coefficient to 0, where",
    ),
    ("algo.group_size=0", "algo.group_size=0: is not a whole number"),
    ("kl.coef=-1", "kl.coef=-1: is not a number of at least 0"),
    ("kl.coef=inf", "kl.coef=inf"),
    ("kl.coef=null", "kl.coef=null"),
    ("filter.threshold=-0.1", "filter.threshold=-0.1: is not a number of at least 0"),
    ("batch.group_size=1", "batch.group_size=1: leaves nothing to compare a completion with, which group-relative advantages"),
    ("algo.group_size=1", "algo.group_size=1: leaves nothing to compare a completion with, which group-relative advantages"),
    ("algo=rloo algo.group_size=1 batch.group_size=4", "Use algo.group_size=2 or more"),
    (
        "algo=sft_h algo.advantage._target_=dash_exp.algorithms.advantages.group_centered",
        "algo.group_size=1: leaves nothing to compare a completion with",
    ),
    (
        "algo=reinforce kl.coef=0.04 kl.place=reward algo.group_size=1",
        "algo.group_size=1: leaves nothing to compare a completion with, which the baseline of a KL in the reward",
    ),
    ("algo=reinforce algo.group_size=1 filter=zero_variance", "filter=zero_variance: keeps nothing"),
    (
        "filter=pods filter.per_group=6 algo.group_size=4",
        "filter.per_group=6: is more than the 4 completions of a group. Lower it, or raise algo.group_size.",
    ),
    ("algo=dr_grpo algo.denominator.max_tokens=0", "algo.denominator.max_tokens=0: is not a whole number of at least 1"),
    ("batch.group_size=0", "batch.group_size=0"),
    ("batch.prompts=0", "batch.prompts=0"),
    ("batch.sample_prompts=65", "batch.sample_prompts=65: is more than the 64 prompts"),
    ("batch.micro_tokens=0", "batch.micro_tokens=0"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


@pytest.mark.parametrize(
    "good",
    [
        "algo=reinforce batch.group_size=1",
        "algo=reinforce batch.group_size=1 kl.coef=0 kl.place=reward",
        "algo=sft_h batch.group_size=1",
        "algo.group_size=4 batch.group_size=1",  # the second is not read
    ],
)
def test_groups_of_one_that_nothing_compares_are_taken(good):
    assert refusal(good) is None


def test_every_refusal_has_a_case():
    assert_each_is_met(algorithm, [refusal(bad) for bad, _ in BAD])
