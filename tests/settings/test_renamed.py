"""The names of parts in earlier versions."""

import pytest
from conftest import CONF

from dash_exp.core.errors import UserError
from dash_exp.settings import renamed, targets


@pytest.mark.parametrize("new", renamed.NAMES.values())
def test_each_new_name_exists(new):
    targets.check({"_target_": new})


@pytest.mark.parametrize("old", renamed.NAMES)
def test_an_old_name_that_is_typed_is_refused_with_the_new_one(old):
    with pytest.raises(UserError, match=rf"^algo\.loss\._target_={old}: is the name of an earlier version\. Write ") as error:
        targets.check({"_target_": old}, "algo.loss")
    assert error.value.right == f"Write {renamed.NAMES[old]}"


def test_the_parts_that_conf_names_had_another_name():
    """Those that moved with the rooms; one that is added to conf/ later has no earlier name, and is listed here."""
    added = {
        "dash_exp.data.prompt_form.PromptForm",
        "dash_exp.data.reasoning_gym.load",
        "dash_exp.rewards.reasoning_gym.ReasoningGymReward",
    }
    lines = [line for file in CONF.rglob("*.yaml") for line in file.read_text().splitlines()]
    named = {line.split("#")[0].partition("_target_: ")[2].strip() for line in lines}
    assert {name for name in named if name.startswith("dash_exp.")} - added <= set(renamed.NAMES.values())


def test_texts_with_old_names():
    said = "kl:\n  schedule: {_target_: dash_exp.kl.Constant}\n- algo.loss._target_=dash_exp.algo.ppo_clip\n"
    now = "kl:\n  schedule: {_target_: dash_exp.algorithms.kl.Constant}\n"
    now += "- algo.loss._target_=dash_exp.algorithms.losses.ppo_clip\n"
    assert renamed.in_text(said) == now
    assert renamed.in_text(now) == now
    assert renamed.in_text('{"_target_": "dash_exp.data.math"}') == '{"_target_": "dash_exp.data.math.load"}'


def test_names_that_only_look_like_old_ones_stay():
    for text in ("dash_exp.data.math.load", "dash_exp.data.maths", "my_dash_exp.data.math", "x.dash_exp.data.math"):
        assert renamed.in_text(text) == text
