from functools import partial

import pytest

from dash_exp import algo
from dash_exp import filter as filters
from dash_exp.errors import UserError
from dash_exp.metrics import Clock
from dash_exp.reward import Scores
from dash_exp.rollout import RolloutDataModule
from dash_exp.sampler import Sampling
from dash_exp.sampler.hf import HFSampler
from dash_exp.types import Problem

PROBLEMS = [Problem(str(i), f"{i}+1=", "1") for i in range(10)]


def module(policy, tokenizer, **changes):
    settings = {
        "train": PROBLEMS,
        "tests": {"in_dist": PROBLEMS[:3]},
        "tokenizer": tokenizer,
        "sampler": HFSampler(policy, tokenizer, max_sequences=8),
        "reward": lambda problems, texts: Scores([float(len(t) % 2) for t in texts], timeouts=1),
        "advantage": algo.group_centered,
        "keep": partial(filters.advantage_above, threshold=0.1),
        "clock": Clock(),
        "prompts": 4,
        "group_size": 3,
        "sample_prompts": None,
        "sampling": Sampling(8),
        "context": 64,
        "max_prompt_tokens": None,
        "eval_prompts": 2,
        "seed": 0,
    }
    return RolloutDataModule(**(settings | changes))


def names(prompts):
    return [p.problem.id for p in prompts]


def test_steps_walk_through_shuffled_passes(policy, tokenizer):
    data = module(policy, tokenizer)
    steps = [names(data.problems_of_step(s)) for s in range(6)]
    for first, second in (steps[0:2], steps[2:4], steps[4:6]):  # 10 problems: two steps of 4 a pass, 2 left over
        assert len(set(first + second)) == 8
    assert steps[0] != steps[2]  # another pass, another order
    assert steps == [names(module(policy, tokenizer).problems_of_step(s)) for s in range(6)]
    assert steps != [names(module(policy, tokenizer, seed=1).problems_of_step(s)) for s in range(6)]


def test_problems_do_not_depend_on_how_sampling_is_cut(policy, tokenizer):
    coupled = module(policy, tokenizer, sample_prompts=2)
    assert coupled.sampling_calls == 2
    assert names(coupled.problems_of_step(3)) == names(module(policy, tokenizer).problems_of_step(3))


def test_rollouts_are_graded_weighed_and_filtered(policy, tokenizer):
    data = module(policy, tokenizer)
    prompts = data.problems_of_step(0)
    rollouts = data.rollouts(prompts, 0)
    assert len(rollouts.completions) == len(rollouts.texts) == 12
    assert rollouts.rewards_PG.flatten().tolist() == [len(t) % 2 for t in rollouts.texts]
    expected = rollouts.rewards_PG - rollouts.rewards_PG.mean(1, keepdim=True)
    assert (rollouts.advantages_PG == expected).all()
    assert (rollouts.keep_PG == (expected.abs() > 0.1)).all()
    assert rollouts.policy_version == 0
    assert rollouts.grader_timeouts == 1
    kept = rollouts.kept()
    assert len(kept) == int(rollouts.keep_PG.sum())
    first = int(rollouts.keep_PG.flatten().nonzero()[0])
    assert kept[0].completion_ids == rollouts.completions[first].ids
    assert kept[0].prompt_ids == prompts[first // 3].ids


def test_time_goes_to_its_phase(policy, tokenizer):
    data = module(policy, tokenizer)
    data.rollouts(data.problems_of_step(0), 0)
    data.greedy_rewards(data.test_prompts["in_dist"])
    assert all(data.clock.seconds[p] > 0 for p in ("sample", "score", "eval"))
    assert data.clock.seconds["update"] == 0


def test_evaluation_covers_the_test_set_once(policy, tokenizer):
    data = module(policy, tokenizer)
    (loader,) = data.val_dataloader()
    assert [len(r) for r in loader] == [2, 1]


def test_a_prompt_that_does_not_fit_the_context_is_named(policy, tokenizer):
    long = Problem("the-long-one", "1+" * 40 + "1=", "1")
    with pytest.raises(UserError, match=r"the-long-one: its prompt of 82 tokens .* context of 64 .*max_prompt_tokens=56"):
        module(policy, tokenizer, train=[*PROBLEMS, long])
    assert len(module(policy, tokenizer, train=[*PROBLEMS, long], max_prompt_tokens=20).train_prompts) == 10


def test_more_prompts_than_problems_are_refused(policy, tokenizer):
    with pytest.raises(UserError, match=r"batch\.prompts=11: is more than the 10 training problems"):
        module(policy, tokenizer, prompts=11)
