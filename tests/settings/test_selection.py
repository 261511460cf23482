"""Settings of select that are refused."""

import pytest
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import selection

GRESO = "select._target_=dash_exp.algorithms.selection.GRESO"
BAD = [
    ("~select", "select=null: is not a section of settings"),
    ("select=screen select.first=1", "select.first=1: is not a whole number of at least 2: the reward of one completion"),
    ("select=screen select.first=8", "select.first=8: leaves nothing of a group of 8 to sample after the screening. Lower it"),
    ("select=screen algo.group_size=2", "select.first=2: leaves nothing of a group of 2 to sample"),
    ("select=screen select.wide=0", "select.wide=0: is not a whole number of at least 1"),
    ("select=screen select.rounds=0", "select.rounds=0: is not a whole number of at least 1"),
    ("select=screen algo=grpo", "select=screen: looks for the prompts of a whole outer step, but batch.sample_prompts=2"),
    ("select=screen algo=dapo", "filter.refill_rounds=3: samples other prompts for groups without a signal, which"),
    ("select=greso select.explore_easy=1", "select.explore_easy=1: is not a number of at least 0.05 and at most 0.95: a"),
    ("select=greso select.explore_hard=0", "select.explore_hard=0: is not a number of at least 0.05"),
    ("select=greso select.target_hard=2", "select.target_hard=2: is not a number of at least 0 and at most 1: it is a share"),
    ("select=greso select.step=1", "select.step=1: is not a number of at least 0 and below 1"),
    ("select=greso select.right=null", "select.right=null: is not a number"),
    ("select=greso algo=sft_h", f"{GRESO}: looks for prompts whose rewards differ, and those of written traces"),
    ("select=greso algo=reinforce batch.group_size=1", f"{GRESO}: looks for prompts whose rewards differ, and"),
    ("select=greso algo=reinforce", f"{GRESO}: leaves out groups of equal rewards, which algo.advantage._target_="),
    ("select=screen algo=sft_m", "looks for prompts whose rewards differ"),
    ("select=screen +select.frist=2", "select.frist: dash_exp.algorithms.selection.Screen has no such setting. Did you"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


@pytest.mark.parametrize(
    "good",
    [
        "select=greso algo=grpo",
        "select=greso algo=dapo",
        "select=screen algo=dapo filter.refill_rounds=0",
        "select=screen algo=ppo_mini",
        "select=screen filter=pods kl.place=reward",
        "select=screen select.first=7 rollout=vllm_server rollout.staleness=1",
        "algo=sft_h",
    ],
)
def test_what_selection_works_with(good):
    assert refusal(good) is None


def test_every_refusal_has_a_case():
    assert_each_is_met(selection, [refusal(bad) for bad, _ in BAD])
