"""The rewards of a run: that of training, and those that test sets bring."""

import json
from contextlib import nullcontext

import pytest
from conftest import SMALL, composed
from mbpp_like import TASKS
from problems import DOUBLE, problem

from dash_exp.commands import run
from dash_exp.commands.data_sets import data_set
from dash_exp.commands.rewards import check_claims, rewards_of
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.rewards import cores
from dash_exp.rewards.base import close_rewards

WITHOUT_BWRAP = "data.tests.code.reward.isolation=process"
CODE = ["+test@data.tests.code=mbpp", WITHOUT_BWRAP]


def names(rewards):
    return {where: type(reward).__name__ for where, reward in rewards.items()}


@pytest.fixture
def given(tokenizer):
    """The rewards of a configuration for one problem of each set, and how many objects they are."""
    made = []

    def of(*overrides, **problems):
        cfg = composed("data=gsm8k", *overrides)
        sets = {f"data.tests.{name}": [problems.get(name, problem("7"))] for name in cfg.data.tests if cfg.data.tests[name]}
        found = rewards_of(cfg, {"data.train": [problem("7")], **sets}, tokenizer)
        made.extend(found.values())
        return names(found), len({id(reward) for reward in found.values()})

    yield of
    close_rewards(made)


def test_a_test_set_is_graded_by_the_reward_that_it_brings(given):
    run_and_in_dist = {"data.train": "MathReward", "data.tests.in_dist": "MathReward"}
    assert given() == (run_and_in_dist, 1)
    with_code = run_and_in_dist | {"data.tests.code": "CodeReward"}
    assert given(*CODE, code=DOUBLE) == (with_code, 2)
    more = ["+test@data.tests.m=math500", "+test@data.tests.g=gsm8k", "+test@data.tests.s=arithmetic"]
    further = {"data.tests.m": "MathReward", "data.tests.g": "MathReward", "data.tests.s": "ExactReward"}
    assert given(*more) == (run_and_in_dist | further, 2)  # equal settings: one object, and one set of processes
    assert given(*more, "data.tests.m.reward.timeout_s=9")[1] == 3
    assert given(*more, "reward@data.tests.s.reward=math")[1] == 1
    null = ["+test@data.tests.s=arithmetic", "data.tests.s.reward=null"]
    assert given(*null, "reward=format") == (
        {"data.train": "FormatReward", "data.tests.in_dist": "FormatReward", "data.tests.s": "FormatReward"},
        1,
    )
    of_its_own = given("reward=format", "+reward@data.tests.in_dist.reward=math_format")
    assert of_its_own == ({"data.train": "FormatReward", "data.tests.in_dist": "SumReward"}, 2)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (CODE, problem("7"), r"^data\.tests\.code, problem p: has no tests for its program"),
        (
            ["+test@data.tests.code=mbpp", "data.tests.code.reward=null"],
            DOUBLE,
            r"^data\.tests\.code, problem d: asks .* \+reward@data\.tests\.code\.reward=code\.$",
        ),
        (
            ["+test@data.tests.code=arithmetic", "data.tests.code.reward.pattern='('"],
            problem("7"),
            r"^data\.tests\.code\.reward\.pattern=\(: is not a regular expression",
        ),
        (
            ["+test@data.tests.code=arithmetic", "data.tests.code.reward.pattern='(x)'"],
            problem("7"),
            r"^data\.tests\.code: in 1 of 1 problems no completion can be correct",
        ),
        (
            [
                "data.tests.out_dist=null",
                "+data.tests.code={_target_:x,reward:{_target_:own_parts.one_for_all,_partial_:true}}",
            ],
            problem("7"),
            r"^data\.tests\.code\.reward\._target_=own_parts\.one_for_all: does not work as a reward",
        ),
    ],
)
def test_each_test_set_is_checked_with_its_own(given, overrides, code, message):
    with pytest.raises(UserError, match=message):
        given(*overrides, code=code)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("reward/mean", None),
        ("reward/right", None),
        (
            "reward/meen",
            r"^study\.claims\[0\]\.metric=reward/meen: the reward has no such part\. Use reward/mean, reward/right\.$",
        ),
    ],
)
def test_a_claim_is_on_a_part_that_the_reward_has(metric, message):
    cfg = composed()
    cfg.study.claims = [{"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "higher", "metric": metric}]
    reward = type("OfParts", (), {"components": ("right",)})()
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_claims(cfg, reward)


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [
        ([], 3),
        (["reward.workers=5"], 5),
        (["reward=math_format"], 3),
        (["reward=math_format", "reward.parts.math.workers=5"], 5),
        (["+data.tests.in_dist.reward=${reward}"], 3),
        (["eval.k=${oc.select:own.no_such_setting,[]}"], 3),  # a list that only a reference has
    ],
)
def test_ranks_that_grade_share_the_cores(overrides, workers, monkeypatch, tokenizer):
    monkeypatch.setattr(cores, "cores", lambda: 6)
    test = "data.tests.in_dist"
    found = rewards_of(composed("data=gsm8k", *overrides), {test: [problem("7")]}, tokenizer, ranks=2)[test]
    close_rewards([found])
    assert getattr(found, "parts", {"math": found})["math"].workers.count == workers


def test_what_a_test_set_brings_is_no_argument_of_it():
    cfg = composed("+test@data.tests.s=arithmetic", "data.tests.s.size=3", "+data.tests.s.max_response_tokens=9")
    assert len(data_set(cfg, "data.tests.s")) == 3


def test_a_run_that_is_evaluated_on_code_and_on_puzzles(tmp_path):
    """Each in its own way, and in the record under its name."""
    rows = [
        {"task_id": 11 + i, "text": t, "code": c, "test_list": [f"assert {a}" for a in tests]}
        for i, (t, c, tests) in enumerate(TASKS)
    ]
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code = [*CODE, f"data.tests.code.path={tmp_path / 'mbpp'}"]
    loose = ["+test@data.tests.loose=arithmetic", "data.tests.loose.size=16", "reward@data.tests.loose.reward=format"]
    pattern = ["data.tests.loose.reward.pattern=.*", "rollout.max_response_tokens=40", "eval.n=2", "eval.k=[1]"]
    folder = tmp_path / "run"
    limit = ["+data.tests.loose.max_response_tokens=3"]  # of the others 40
    result = run.run(composed(*SMALL, "steps=1", *code, *loose, *pattern, *limit), folder)
    assert result["accuracy/loose/final"] == 1 > result["accuracy/in_dist/final"]
    assert result["eval/loose/length/mean_tokens/final"] <= 3 < result["eval/in_dist/length/mean_tokens/final"]
    assert result["accuracy/code/final"] == 0
    assert "eval/in_dist/maj@2/final" in result
    assert not {"eval/code/maj@2/final", "eval/loose/maj@2/final"} & set(result)  # these rewards read no answer
    columns = read_metrics(folder / "metrics.csv")[-1]
    assert {"accuracy/code", "accuracy/loose", "eval/in_dist/maj@2", "eval/loose/avg@2"} <= set(columns)
    assert "eval/loose/maj@2" not in columns
