"""Settings of optimizer and schedule that are refused."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.core.errors import UserError
from dash_exp.settings import optimizer

BAD = [
    ("clip_norm=0", "clip_norm=0"),
    ("optimizer.lr=0", "optimizer.lr=0"),
    ("clip_norm=true", "clip_norm=true"),
    (
        "optimizer.betas=[0.9,1.0]",
        "optimizer.betas=[0.9, 1.0]: must be two numbers from 0 to below 1. Write two, as in [0.9,0.99].",
    ),
    ("optimizer.betas=0.9", "optimizer.betas=0.9: must be two numbers from 0 to below 1. Write two, as in [0.9,0.99]."),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be two numbers from 0 to below 1. Write two, as in [0.9,0.99]."),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1: is not a number of at least 0"),
    ("+optimizer.eps=-1", "optimizer.eps=-1: is not a number of at least 0"),
    ("+optimizer.learning_rate=1", "optimizer.learning_rate: torch.optim.AdamW has no such setting. It has"),
    (
        "schedule.name=slow",
        "schedule._target_=transformers.get_scheduler: does not work in this training loop (slow is not a",
    ),
    ("schedule.num_warmup_steps=-1", "schedule.num_warmup_steps=-1: is not a whole number of at least 0"),
    ("schedule.num_warmup_steps=80", "is not below the 80 steps of the schedule, so the learning rate is never reached"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def no_bitsandbytes() -> UserError | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        return refusal_of(composed("optimizer._target_=bitsandbytes.optim.AdamW8bit", "~optimizer.fused"))


def test_bitsandbytes_that_is_not_installed():
    assert_refused(
        no_bitsandbytes(),
        "optimizer._target_=bitsandbytes.optim.AdamW8bit: bitsandbytes is not installed. Run pip install -e '.[8bit]'",
    )


def test_every_refusal_has_a_case():
    assert_each_is_met(optimizer, [*(refusal(bad) for bad, _ in BAD), no_bitsandbytes()])
