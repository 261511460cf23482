import json

import pytest
from json_lines import write
from mbpp_like import TASKS, row

from dash_exp.algorithms import advantages, filters
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.data import mbpp
from dash_exp.data.prompts import tokenized
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.models.passes import Passes
from dash_exp.rewards.code import CodeReward
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.refresh import Refresh
from dash_exp.sampling.traces import TraceSampler
from dash_exp.training.rollout import RolloutDataModule, SamplingPlan
from dash_exp.training.scoring import Scoring


def test_mbpp_is_split_by_task_id(tmp_path):
    ids = [1, 10, 11, 510, 511, 600, 601, 974]
    write(tmp_path, [row(i, n) for i, n in enumerate(ids)], "mbpp.jsonl")
    found = {s: [p.id for p in mbpp.load(str(tmp_path), s)] for s in ("prompt", "test", "validation", "train")}
    assert found == {
        "prompt": ["mbpp/1", "mbpp/10"],
        "test": ["mbpp/11", "mbpp/510"],
        "validation": ["mbpp/511", "mbpp/600"],
        "train": ["mbpp/601", "mbpp/974"],
    }


def test_mbpp_rows(tmp_path):
    rows = [
        row(0, 700) | {"test_setup_code": "one = 1\r\n", "challenge_test_list": ["assert add(0, 0) == 0"]},
        {
            "prompt": "Sanitized.",
            "code": "def f(): pass",
            "task_id": 2,
            "test_list": ["assert f()"],
            "test_imports": ["import math"],
        },
        row(1, 702) | {"test_list": ["assert largest([1]) == 1", f"assert largest({[1] * 200}) == 1"]},
    ]
    first, second, third = mbpp.load(write(tmp_path / "d", rows), "train")
    assert first.prompt == (
        "Write a function to add two numbers.\nThe program must pass these tests:\n"
        "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add('a', 'b') == 'ab'\n"
    )
    assert first.tests == (
        "one = 1\n",
        "assert add(1, 2) == 3",
        "assert add(-1, 1) == 0",
        "assert add('a', 'b') == 'ab'",
        "assert add(0, 0) == 0",
    )
    assert first.solution == first.answer == "def add(a, b):\n    return a + b"
    assert second.prompt == "Sanitized.\nThe program must pass these tests:\nassert f()\n"
    assert second.tests == ("import math", "assert f()")
    assert third.prompt.endswith("tests:\nassert largest([1]) == 1\n")
    assert len(third.tests) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": []}, r"line 1, field test_list: is missing or empty"),
        ({"test_list": "assert f()"}, r"line 1, field test_list: is 'assert f\(\)'"),
        ({"task_id": "first"}, r"line 1, field task_id: is 'first'"),
        ({"code": ""}, r"line 1, field code: is ''"),
        ({"text": None}, r"line 1, field text: is None"),
    ],
)
def test_bad_mbpp_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        mbpp.load(write(tmp_path / "d", [row(0, 1) | change]), "train")


def test_reference_programs_get_1_from_problem_to_rollout(bubblewrap, policy, tokenizer, tmp_path):
    """A sampler that hands out the reference programs; and each of them gets 0 on the tests of the next task."""
    write(tmp_path, [row(i, 601 + i) for i in range(len(TASKS))], "mbpp.jsonl")
    problems = mbpp.load(str(tmp_path), "train")
    reward, sampler = CodeReward(timeout_s=20), TraceSampler(tokenizer)
    prompts = tokenized(problems, tokenizer, 2048, 512, "data.train", 1024)
    module = RolloutDataModule(
        train=prompts,
        tests={"in_dist": prompts[:3]},
        plan=SamplingPlan(len(TASKS), 2, Sampling(512)),
        refresh=Refresh(policy, sampler),
        scoring=Scoring(reward, advantages.group_centered, filters.KeepAll()),
        evaluator=Evaluator(sampler, {"in_dist": reward}, tokenizer, Sampling(512, temperature=0.0)),
        passes=Passes(2048, pad_id=0),
        clock=Clock(),
    )
    rollouts = module.rollouts(module.problems_of_step(0), 0)
    assert rollouts.rewards_PG.tolist() == [[1, 1]] * len(TASKS)
    assert (rollouts.grader_timeouts, rollouts.grader_errors) == (0, 0)
    assert module.evaluate("in_dist", module.test_prompts["in_dist"]).greedy.correct == [True] * 3
    shifted = [p.solution for p in [*problems[1:], problems[0]]]
    assert CodeReward()(problems, shifted).rewards == [0] * len(TASKS)


def test_mbpp_with_the_code_reward_runs_as_typed(bubblewrap, train, tmp_path):
    write(tmp_path, [row(i, n) for i, n in enumerate((*range(11, 15), *range(601, 609)))], "mbpp.jsonl")
    small = ["steps=1", "batch.prompts=4", "batch.group_size=2", "rollout.max_response_tokens=16", "logger=csv", "name=m"]
    done = train("data=mbpp", f"data.path={tmp_path}", "reward=code", *small)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(file.read_text()) for file in tmp_path.glob("outputs/m/*/result.json"))
    assert result["status"] == "done"
    assert result["accuracy/in_dist/final"] == 0  # the tiny model writes no Python
    assert (result["score/errors"], result["eval/errors"]) == (0, 0)


def test_without_bubblewrap_a_run_ends_with_a_message(train, tmp_path):
    write(tmp_path, [row(i, n) for i, n in enumerate((11, 601))], "mbpp.jsonl")
    done = train("data=mbpp", f"data.path={tmp_path}", env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "apt install bubblewrap" in done.stderr
    assert "Traceback" not in done.stderr
