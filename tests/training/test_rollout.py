import dataclasses
import time

import pytest
import torch

from dash_exp.algorithms import advantages, filters, kl
from dash_exp.algorithms.weighting import StepCounts
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.core.types import Completion, Problem
from dash_exp.data.prompts import tokenized
from dash_exp.distributed.ranks import Ranks
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.models.passes import Passes
from dash_exp.rewards.base import Scores
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.refresh import Refresh
from dash_exp.training.measures import rollout_metrics
from dash_exp.training.rollout import RolloutDataModule, SamplingPlan, _OuterStep
from dash_exp.training.scoring import Scoring, Truncated

PROBLEMS = [Problem(str(i), f"{i}+1=", "1") for i in range(10)]


def module(policy, tokenizer, *, problems=PROBLEMS, max_prompt_tokens=None, sampler=None, **changes):
    """The data module with these settings of its plan, its scoring or itself."""
    sampler = sampler or HFSampler(policy, tokenizer, max_sequences=8)

    def chosen(kind, defaults):
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**(defaults | {name: changes.pop(name) for name in names if name in changes}))

    plan = chosen(SamplingPlan, {"prompts": 4, "group_size": 3, "sampling": Sampling(8)})
    scoring = {"reward": odd_lengths, "advantage": advantages.group_centered, "keep": filters.AdvantageAbove(0.1)}
    scoring = chosen(Scoring, scoring)
    return RolloutDataModule(
        train=tokenized(problems, tokenizer, 64, plan.sampling.max_tokens, "data.train", max_prompt_tokens),
        tests={"in_dist": tokenized(PROBLEMS[:3], tokenizer, 64, plan.sampling.max_tokens, "data.tests.in_dist")},
        plan=plan,
        refresh=Refresh(policy, sampler),
        scoring=scoring,
        evaluator=Evaluator(
            sampler, {"in_dist": scoring.reward}, tokenizer, Sampling(plan.sampling.max_tokens, temperature=0.0)
        ),
        passes=Passes(2048, pad_id=0),
        clock=Clock(),
        **changes,
    )


def odd_lengths(problems, texts):
    """Right are completions of an odd number of characters; one grading of each call takes too long."""
    return Scores([float(len(t) % 2) for t in texts], timeouts=1)


class Scripted:
    """A sampler that writes what it is told for each problem and index in the group; all share the policy's version 0."""

    version = 0

    def __init__(self, tokenizer, write):
        self.tokenizer, self.write, self.calls = tokenizer, write, []

    def sample(self, prompts, group_size, sampling, key):
        self.calls.append(names(prompts))
        rows = [(p.problem, i) for p in prompts for i in range(group_size)]
        texts = [self.write(problem, i) for problem, i in rows]
        ids = [tuple(self.tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
        return [Completion(i, (-1.0,) * len(i), truncated=t.endswith("~")) for i, t in zip(ids, texts, strict=True)]

    def load_weights(self, weights, version):
        pass

    def rest(self):
        pass


def exact(problems, texts):
    """1 where the completion begins with r."""
    return Scores([float(t.startswith("r")) for t in texts], components={"first": [1.0 * i for i in range(len(texts))]})


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
    assert coupled.plan.calls == 2
    assert names(coupled.problems_of_step(3)) == names(module(policy, tokenizer).problems_of_step(3))


def test_rollouts_are_graded_weighed_and_filtered(policy, tokenizer):
    data = module(policy, tokenizer)
    prompts = data.problems_of_step(0)
    rollouts = data.rollouts(prompts, 0)
    assert len(rollouts.completions) == len(rollouts.texts) == 12
    assert rollouts.rewards_PG.flatten().tolist() == [len(t) % 2 for t in rollouts.texts]
    expected = (rollouts.rewards_PG - rollouts.rewards_PG.mean(1, keepdim=True)).float()
    assert (rollouts.advantages_PG == expected).all()
    assert (rollouts.keep_PG == (expected.abs() > 0.1)).all()
    assert rollouts.policy_version == 0
    assert rollouts.grader_timeouts == 1
    for i, sample in enumerate(rollouts.samples()):
        assert sample.completion_ids is rollouts.completions[i].ids
        assert sample.logprobs is rollouts.completions[i].logprobs
        assert sample.prompt_ids == prompts[i // 3].ids
        assert sample.advantage == expected.flatten()[i]


def test_time_goes_to_its_phase(policy, tokenizer):
    data = module(policy, tokenizer)
    data.rollouts(data.problems_of_step(0), 0)
    data.evaluate("in_dist", data.test_prompts["in_dist"])
    assert all(data.clock.seconds[p] > 0 for p in ("sample", "score", "eval"))
    assert data.clock.seconds["update"] == 0


def test_evaluation_covers_the_test_set_once(policy, tokenizer):
    data = module(policy, tokenizer)
    (loader,) = data.val_dataloader()
    assert len(loader) == 1
    assert [[p.id for p in done.problems] for done in loader] == [names(data.test_prompts["in_dist"])]


class Room(Ranks):
    """Ranks that note when they meet."""

    def __init__(self, did):
        super().__init__()
        self.did = did

    def gather(self, value):
        self.did.append("meet")
        return super().gather(value)


@pytest.mark.parametrize("shares", [False, True])
def test_all_ranks_make_room_before_a_sampler_on_their_devices_wakes(policy, tokenizer, monkeypatch, shares):
    did = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: did.append("free"))
    sleeper = Sleeper(policy, tokenizer, max_sequences=8)
    sleeper.asked = did
    data = module(policy, tokenizer, sampler=sleeper, ranks=Room(did), shares_devices=shares)
    list(_OuterStep(data, 0))
    room = ["free", "meet"] if shares else []
    assert did == [*room, "load", "sample", "rest"]
    did.clear()
    (loader,) = data.val_dataloader()
    list(loader)
    assert did[: len(room) + 2] == [*room, "load", "sample"]


class Sleeper(HFSampler):
    """Asleep it has no weights, as an engine. It notes what it was asked, and takes a while to fall asleep and to load."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.asked = []

    def load_weights(self, weights, version):
        self.asked.append("load")
        time.sleep(0.03)
        super().load_weights(weights, version)

    def sample(self, *arguments):
        assert self.version is not None, "it sleeps"
        self.asked.append("sample")
        return super().sample(*arguments)

    def rest(self):
        self.asked.append("rest")
        time.sleep(0.03)
        self.version = None


@pytest.mark.parametrize(
    ("sample_prompts", "traces", "asked"),
    [
        (None, False, ["load", "sample", "rest"]),
        (1, False, ["load", *["sample"] * 4, "rest"]),  # coupled: awake until its last call
        (3, False, ["load", "sample", "sample", "rest"]),
        (2, True, ["rest", "rest"]),  # it is not asked for anything in a step that learns from traces
    ],
)
def test_a_sampler_rests_once_nothing_more_is_sampled_in_the_step(policy, tokenizer, sample_prompts, traces, asked):
    sleeper = Sleeper(policy, tokenizer, max_sequences=8)
    written = {"train_sampler": Scripted(tokenizer, lambda problem, i: "r")} if traces else {}
    data = module(policy, tokenizer, sampler=sleeper, sample_prompts=sample_prompts, **written)
    for step in range(2):  # without an update between them: the second step has the same weights
        sleeper.asked.clear()
        assert len(list(data.rollouts_of_step(step))) == data.plan.calls
        data.refresh.publish(0)
        assert sleeper.asked == asked
    assert data.clock.seconds["sync"] >= 2 * 0.03 * len(set(asked) - {"sample"})
    sleeper.asked.clear()
    data.evaluate("in_dist", data.test_prompts["in_dist"])
    assert sleeper.asked == ["load", "sample"]
    list(data.rollouts_of_step(2))
    assert sleeper.asked == ["load", "sample", *(a for a in asked if a != "load")]  # evaluation has woken it


def test_a_prompt_that_does_not_fit_the_context_is_named(policy, tokenizer):
    long = Problem("the-long-one", "1+" * 40 + "1=", "1")
    with pytest.raises(UserError, match=r"the-long-one: its prompt of 82 tokens .* context of 64 .*max_prompt_tokens=56"):
        module(policy, tokenizer, problems=[*PROBLEMS, long])
    assert len(module(policy, tokenizer, problems=[*PROBLEMS, long], max_prompt_tokens=20).train_prompts) == 10


def test_more_prompts_than_problems_are_refused(policy, tokenizer):
    with pytest.raises(UserError, match=r"batch\.prompts=11: is more than the 10 training problems"):
        module(policy, tokenizer, prompts=11)


# --- truncated completions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "advantages", "kept"),
    [
        # rewards 1 1 0 0 in each group, the second and third completion are cut off
        ("score", [0.5, 0.5, -0.5, -0.5], [True] * 4),
        ("mask", [0.5, 0.5, -0.5, -0.5], [True, False, False, True]),
        ("penalize", [0.75, 0.25, -0.75, -0.25], [True] * 4),  # 1, 0.5, -0.5, 0: mean 0.25
    ],
)
def test_truncated_completions(policy, tokenizer, choice, advantages, kept):
    sampler = Scripted(tokenizer, lambda problem, i: ["right", "right~", "wrong~", "wrong"][i])
    data = module(
        policy, tokenizer, sampler=sampler, reward=exact, group_size=4, keep=filters.KeepAll(), truncated=Truncated(choice, 0.5)
    )
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert rollouts.rewards_PG[0].tolist() == [1, 1, 0, 0]  # what was graded is recorded as it was
    assert rollouts.advantages_PG[0].tolist() == advantages
    assert rollouts.keep_PG[0].tolist() == kept


# --- what rounding must not change --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [0.1, 1000.1, 0.1 + 0.2])
@pytest.mark.parametrize("keep", [filters.AdvantageAbove(0.0), filters.AdvantageAbove(0.1), filters.Quantile(0.5)])
def test_groups_of_equal_rewards_are_dropped(policy, tokenizer, reward, keep):
    """All rewards of the first three problems are equal; of the last, one is 1 more."""
    sampler = Scripted(tokenizer, lambda problem, i: "wrong")

    def graded(problems, texts):
        assert len(texts) == 32
        return Scores([reward + (i == 31) for i in range(32)])

    changes = {"sampler": sampler, "reward": graded, "group_size": 8, "advantage": advantages.group_normalized, "keep": keep}
    data = module(policy, tokenizer, **changes)
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert (rollouts.advantages_PG[:3] == 0).all()
    assert rollouts.keep_PG.tolist() == [[False] * 8] * 3 + [[True] * 8]
    assert rollout_metrics([rollouts], StepCounts(1, 1, 1, 1), sampler)["groups/signal_fraction"] == 0.25


def test_advantages_that_are_equal_on_paper_are_equal_to_the_filters(policy, tokenizer):
    """Rewards 0.1 and 0.3 lie 0.1 from their mean on both sides; computed in 32 bits one would be 7e-9 farther."""
    sampler = Scripted(tokenizer, lambda problem, i: "wrong")

    def graded(problems, texts):
        return Scores([0.1, 0.3] * (len(texts) // 2))

    for keep, kept in ((filters.AdvantageAbove(0.1), 0), (filters.Quantile(0.9), 8)):  # at the limit; all as large as the cut
        data = module(policy, tokenizer, sampler=sampler, reward=graded, group_size=2, keep=keep)
        assert data.rollouts(data.problems_of_step(0), 0).keep_PG.sum() == kept


def test_an_advantage_that_is_not_a_number_is_named(policy, tokenizer):
    data = module(policy, tokenizer, group_size=1, advantage=lambda rewards_PG: rewards_PG * torch.nan)
    with pytest.raises(UserError, match=r"^algo\.advantage: gives NaN or infinite advantages for groups of 1 completions"):
        data.rollouts(data.problems_of_step(0), 0)


# --- filters that change more than the mask -----------------------------------------------------------------------------


def test_pods_computes_advantages_from_the_kept_alone(policy, tokenizer):
    sampler = Scripted(tokenizer, lambda problem, i: "right" if i == 2 else "wrong")
    data = module(policy, tokenizer, sampler=sampler, reward=exact, group_size=4, keep=filters.PODS(2))
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert (rollouts.keep_PG.sum(1) == 2).all()
    assert rollouts.keep_PG[:, 2].all()
    for of_group, keep in zip(rollouts.advantages_PG, rollouts.keep_PG, strict=True):
        assert sorted(of_group[keep].tolist()) == [-0.5, 0.5]  # not 0.75 and -0.25, the group's


def only_even(problem, i):
    """Problems with an even number have a signal, the others are always wrong."""
    return "right" if int(problem.id) % 2 == 0 and i == 0 else "wrong"


def test_refill_samples_other_prompts_until_all_groups_carry_a_signal(policy, tokenizer):
    sampler = Scripted(tokenizer, only_even)
    problems = [Problem(str(i), f"{i}+1=", "1") for i in range(40)]
    data = module(policy, tokenizer, problems=problems, sampler=sampler, reward=exact, keep=filters.ZeroVariance(10), prompts=8)
    first = data.problems_of_step(0)
    rollouts = data.rollouts(first, 0)
    sampled = [n for call in sampler.calls for n in call]
    assert len(sampled) == len(set(sampled)) == len(rollouts.prompts)  # no problem comes twice
    assert sampler.calls[0] == names(first)
    assert rollouts.refill_rounds == len(sampler.calls) - 1 > 0
    kept_groups = rollouts.keep_PG.any(1)
    assert kept_groups.sum() == 8  # and no more than P, even if the last call found more
    assert all(int(n) % 2 == 0 for n, keep in zip(names(rollouts.prompts), kept_groups, strict=True) if keep)
    assert len(rollouts.samples()) == 3 * len(sampled) == len(rollouts.components["first"])


def test_refill_stops_at_its_limit_and_at_the_end_of_the_data(policy, tokenizer):
    never = Scripted(tokenizer, lambda problem, i: "wrong")
    data = module(policy, tokenizer, sampler=never, reward=exact, keep=filters.ZeroVariance(2), prompts=3)
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert rollouts.refill_rounds == 2
    assert not rollouts.keep_PG.any()
    all_of_them = module(policy, tokenizer, sampler=never, reward=exact, keep=filters.ZeroVariance(50), prompts=3)
    rollouts = all_of_them.rollouts(all_of_them.problems_of_step(0), 0)
    assert sorted(names(rollouts.prompts)) == sorted(str(i) for i in range(10))


def test_no_refill_where_every_group_has_a_signal(policy, tokenizer):
    sampler = Scripted(tokenizer, lambda problem, i: "right" if i == 0 else "wrong")
    data = module(policy, tokenizer, sampler=sampler, reward=exact, keep=filters.ZeroVariance(3))
    assert data.rollouts(data.problems_of_step(0), 0).refill_rounds == 0


# --- KL in the reward ---------------------------------------------------------------------------------------------------


def test_the_kl_penalty_is_taken_off_with_a_baseline_of_its_own(policy, tokenizer):
    sampler = Scripted(tokenizer, lambda problem, i: "right" if i == 0 else "wrong")

    def penalty(prompts, completions):
        assert len(prompts) == len(completions)
        nats = torch.tensor([float(i % 3) for i in range(len(completions))])
        return nats, nats / 2

    data = module(
        policy,
        tokenizer,
        sampler=sampler,
        reward=exact,
        keep=filters.KeepAll(),
        kl_penalty=penalty,
        kl_coef=kl.Constant(0.1, 5),
    )
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert rollouts.rewards_PG[0].tolist() == [1, 0, 0]
    # rewards 1 0 0 less their mean; penalties 0, 0.1, 0.2 less the mean of the others: -0.15, 0, 0.15
    torch.testing.assert_close(rollouts.advantages_PG[0], torch.tensor([2 / 3 + 0.15, -1 / 3, -1 / 3 - 0.15]))
    assert rollouts.kl_nats == 6.0  # (0 + 1 + 2) / 2 in each of 4 groups


def test_a_filter_by_rewards_sees_what_was_graded(policy, tokenizer):
    """The KL differs from one completion to the next, but a group whose answers are all wrong has no signal."""
    sampler = Scripted(tokenizer, lambda problem, i: "wrong")
    nats = torch.arange(12.0)
    data = module(
        policy,
        tokenizer,
        sampler=sampler,
        reward=exact,
        keep=filters.ZeroVariance(0),
        kl_penalty=lambda prompts, completions: (nats, nats),
        kl_coef=kl.Constant(0.1, 5),
    )
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    assert rollouts.advantages_PG.abs().max() > 0
    assert not rollouts.keep_PG.any()


@pytest.mark.parametrize("coef", [0.001, 0.1])
def test_the_coefficient_counts_where_rewards_are_equal(policy, tokenizer, coef):
    """Dividing by the standard deviation of the rewards must not touch the KL: it would cancel the coefficient."""
    nats = torch.arange(12.0) % 3
    data = module(
        policy,
        tokenizer,
        sampler=Scripted(tokenizer, lambda problem, i: "wrong"),
        reward=exact,
        advantage=advantages.group_normalized,
        kl_penalty=lambda prompts, completions: (nats, nats),
        kl_coef=kl.Constant(coef, 5),
    )
    rollouts = data.rollouts(data.problems_of_step(0), 0)
    torch.testing.assert_close(rollouts.advantages_PG, coef * torch.tensor([[1.5, 0.0, -1.5]] * 4))
    assert bool(rollouts.keep_PG.any()) == (coef == 0.1)  # |A| of 0.0015 is below the filter's 0.1
