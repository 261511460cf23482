"""Arms of equal cost, and their baselines."""

import pytest
from conftest import composed

from dash_exp.commands.sweep.matched import check_alone, wanted_baseline
from dash_exp.core.errors import UserError


def test_a_run_alone_has_no_baseline():
    check_alone(composed())
    with pytest.raises(UserError, match=r"^budget.match=seconds: stops an arm of a sweep .* and this is a single run"):
        check_alone(composed("budget.match=seconds", "study.baseline=['algo=dash']"))


def test_the_baseline_of_a_cell():
    cfg = composed("budget.match=seconds", "study.baseline=['algo=dash']")
    assert wanted_baseline(cfg, {"algo": "ppo_mini", "seed": "1"}) == {"algo": "dash", "seed": "1"}
    assert wanted_baseline(cfg, {"algo": "dash", "seed": "1"}) is None
    assert wanted_baseline(composed(), {"algo": "ppo_mini"}) is None
