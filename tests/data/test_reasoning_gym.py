import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import composed
from refusals import assert_refused

from dash_exp.commands.data_sets import data_set
from dash_exp.core.errors import UserError
from dash_exp.data import digests, order
from dash_exp.data.reasoning_gym import load
from dash_exp.rewards import puzzles
from dash_exp.settings.validate import validate

pytestmark = pytest.mark.needs("gym")

DIGESTS = """
import json, sys
from dash_exp.data import digests
from dash_exp.data.reasoning_gym import load

print(json.dumps({task: digests.of_sets(load(task, size=1), {}) for task in sys.argv[1:]}))
"""


def test_problems_are_different_and_have_what_the_scorer_needs():
    problems = load("chain_sum", {"min_terms": 2, "max_terms": 2}, size=50)
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == 50
    for p in problems:
        left, sign, right = p.prompt.removesuffix(" =").rpartition(": ")[2].split()
        assert p.answer == str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert p.extra["task"] == "chain_sum"
        assert p.extra["options"] == {"min_terms": 2, "max_terms": 2}


def test_the_same_problems_in_each_process():
    """Some tasks iterate over sets of texts, whose order differs between processes, or draw from common generators."""
    tasks = sorted(puzzles.tasks().keys() - puzzles.UNUSABLE.keys() - puzzles.BY_HASH)
    other = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    command = [sys.executable, "-c", DIGESTS, *tasks]
    there = json.loads(subprocess.run(command, env=os.environ | other, capture_output=True, check=True).stdout)
    here = {task: digests.of_sets(load(task, size=1), {}) for task in tasks}
    assert [task for task in tasks if here[task] != there[task]] == []


def test_seeds_share_no_problem_and_common_generators_are_left_alone():
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    first, second = (load("pool_matrix", size=20, seed=seed) for seed in (0, 1))
    assert order.without(first, second) == first
    assert (random.random(), np.random.random()) == expected


def test_a_run_without_a_size_never_gets_a_problem_twice(caplog):
    assert len(load("chain_sum", takes=80)) == 100  # a quarter more, for those that a test has as well
    few = load("chain_sum", {"max_terms": 2, "max_digits": 1}, size=1000)
    assert 190 <= len(few) <= 200  # of 10 x 10 x 2 signs
    assert f"task chain_sum: {len(few)} different problems were found with these options, not 1000" in caplog.text


def test_a_task_whose_problems_repeat_and_whose_entries_end_at_its_size(monkeypatch, caplog):
    """As word_ladder: each text comes ten times, and an index behind the size is an error."""
    sizes = []

    def made(task, options, seed, size):
        sizes.append(size)
        if size > 32:
            raise UserError("options of task gcd", "cannot be used (too many)", "Correct them")
        return [{"question": f"question {i // 10}", "answer": "a", "metadata": {}} for i in range(size)]

    monkeypatch.setattr("dash_exp.data.reasoning_gym.dataset", made)
    assert [p.prompt for p in load("gcd", size=4)] == [f"question {i}" for i in range(4)]
    assert sizes == [8, 16, 32]
    assert len(load("gcd", size=9)) == 2
    assert "2 different problems were found" in caplog.text


def test_several_tasks_by_their_weights():
    problems = load(tasks={"chain_sum": 2, "gcd": {"weight": 1, "max_value": 30}}, size=31)
    of = [p.id.partition("/")[0] for p in problems]
    assert (of.count("chain_sum"), of.count("gcd")) == (21, 10)  # 20.67 and 10.33
    assert (of[:12].count("chain_sum"), of[:12].count("gcd")) == (8, 4)  # the first problems, as eval.limit takes them
    assert next(p for p in problems if p.id.startswith("gcd")).extra["options"] == {"max_value": 30}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "data.task and data.tasks: neither is given. Give one of them"),
        ({"task": "gcd", "tasks": {"gcd": 1}}, "data.task and data.tasks: both are given. Give one of them"),
        ({"task": "gcd", "options": 3}, "data.options=3: has no names. "),
        ({"tasks": {"gcd": 0}}, "data.tasks.gcd: its weight is 0. Write a number above 0"),
        ({"tasks": ["gcd", "lcm"]}, "data.tasks=['gcd', 'lcm']: has no weights. "),
        ({"tasks": {"gcd": "much"}}, "data.tasks.gcd: its weight is much. "),
        ({"tasks": {"gcd": 1}, "options": {"max_value": 3}}, "data.options: belong to data.task. "),
        ({"tasks": {"gdc": 1}}, "task gdc: is not one of reasoning-gym. Did you mean gcd"),
        ({"task": "gcd", "size": 0}, "size=0: is not a whole number of at least 1. "),
        ({"task": "gcd", "size": 1.5}, "size=1.5: is not a whole number of at least 1. "),
    ],
)
def test_settings_that_cannot_be_used(given, message):
    with pytest.raises(UserError) as error:
        load(**({"size": 3} | given))
    assert_refused(error.value, message)


def test_options_are_given_without_a_plus():
    chosen = ["data=reasoning_gym", "data.task=chain_sum", "steps=4", "batch.prompts=8"]
    cfg = composed(*chosen, "data.options.min_terms=2", "data.options.max_terms=3")
    validate(cfg)
    train, test = data_set(cfg, "data.train"), data_set(cfg, "data.tests.in_dist")
    assert (len(train), len(test)) == (40, 200)
    assert train[0].extra["options"] == {"min_terms": 2, "max_terms": 3}
    assert digests.of_sets(train, {}) == digests.of_sets(load("chain_sum", train[0].extra["options"], size=40), {})


def test_a_test_set_of_another_task():
    chosen = ["data=reasoning_gym", "data.task=chain_sum", "+test@data.tests.out_dist=reasoning_gym"]
    cfg = composed(*chosen, "data.tests.out_dist.task=gcd", "data.tests.out_dist.options.max_value=30")
    validate(cfg)
    assert data_set(cfg, "data.tests.out_dist")[0].extra["options"] == {"max_value": 30}
