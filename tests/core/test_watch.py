"""Each check is made to fire by the fault that it is for, in Lightning's real loop, and each policy does what it says."""

import json
import math
from functools import partial

import pytest
import torch
from conftest import ROOT, SMALL, composed
from omegaconf import OmegaConf
from training.test_module import SLOW, never_right, one_run, parity_reward
from transformers import AutoModelForCausalLM

from dash_exp.algorithms import advantages, filters, losses
from dash_exp.commands import run
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Completion
from dash_exp.core.watch import CHECKS, Watch
from dash_exp.sampling.hf import HFSampler
from dash_exp.settings.validate import validate

ADAM = partial(torch.optim.Adam, lr=0.01)
TINY = [*SMALL, "batch.prompts=2", "data.tests.in_dist.size=2", "data.tests.out_dist.size=2"]
QUIET = {name: {"policy": "off"} for name in CHECKS}  # random weights seldom end a completion: most are truncated


def watching(name, **settings):
    """This check alone."""
    return Watch(QUIET | {name: settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fired(tmp_path, name):
    return [row[f"watch/{name}"] for row in read_metrics(tmp_path / "metrics.csv")]


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "dash_exp.core.watch"]


# --- faults ------------------------------------------------------------------------------------------------------------


class Faulty(HFSampler):
    """A sampler that may spoil the policy before training, and the log-probabilities or the version that it reports."""

    def __init__(self, policy, tokenizer, max_sequences):
        super().__init__(policy, tokenizer, max_sequences)
        with torch.no_grad():
            self.spoil(policy)
        Faulty.policy_of_run, Faulty.before = policy, weights(policy).clone()

    def spoil(self, policy):
        pass

    def logprob(self, value):
        return value

    def sample(self, prompts, group_size, sampling, key):
        completions = super().sample(prompts, group_size, sampling, key)
        return [Completion(c.ids, tuple(map(self.logprob, c.logprobs)), c.truncated) for c in completions]


class NanWeight(Faulty):
    def spoil(self, policy):
        policy.model.norm.weight[0] = math.nan

    def sample(self, prompts, group_size, sampling, key):
        return [Completion((5, 1), (-1.0, -1.0), False) for _ in prompts for _ in range(group_size)]


class NanLogprob(Faulty):
    def logprob(self, value):
        return math.nan


class Deterministic(Faulty):
    """Logits ten thousand times as large: one token has all of the probability, and the policy is far from the reference."""

    def spoil(self, policy):
        policy.model.norm.weight *= 10_000


class Improbable(Faulty):
    def logprob(self, value):
        return value - 5


class WrongVersion(Faulty):
    def load_weights(self, weights, version):
        self.version = version + 7


def breaks(at, reward=parity_reward, then=never_right):
    """A reward that is another one from outer step `at` (from 1) on. Evaluation has one problem, and does not count."""
    calls = []

    def graded(problems, texts):
        calls.append(len(texts) > 1)
        return (reward if sum(calls) < at else then)(problems, texts)

    return graded


def infinite_gradient(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT):
    """The loss is finite; its gradient is 1/0."""
    zero_BT = logprobs_BT - logprobs_BT.detach()
    return losses.TokenLoss(-advantages_B[:, None] * logprobs_BT.detach() + zero_BT.abs().sqrt(), None)


def nan_loss(at):
    """A loss that is not a number in these optimizer steps (from 1)."""
    calls = []

    def loss(logprobs_BT, *rest):
        calls.append(1)
        found = losses.policy_gradient(logprobs_BT, *rest)
        return found._replace(loss_BT=found.loss_BT * math.nan) if len(calls) in at else found

    return loss


FAULTS = {  # check: [what makes it fire in the first outer step, limits of the check, what is said of it]
    "a NaN weight": ("nonfinite", {"sampler": NanWeight}, {}, "the loss is nan and the norm of the gradient is nan"),
    "an infinite gradient": ("nonfinite", {"loss": infinite_gradient}, {}, "the norm of the gradient is"),
    "a deterministic policy": ("entropy_collapse", {"sampler": Deterministic}, {"below": 0.005}, "the sampled tokens have"),
    "a policy far from the reference": ("kl_blowup", {"sampler": Deterministic, "coef": 0.01}, {"above": 1.0}, "the KL to the"),
    "a reward that is always the same": ("no_signal", {"reward": never_right}, {}, "the advantages of all completions are 0"),
    "a filter that drops all": ("no_signal", {"keep": filters.AdvantageAbove(9)}, {}, "no completion was kept"),
    "ratios that are all clipped": (
        "clipped",
        {"sampler": Improbable, "loss": losses.cispo},
        {"above": 0.9},
        "a clip or a cap",
    ),
    "no room to finish": ("truncated", {}, {"above": 0.9}, "96% of the completions are cut off by the token limit"),
    "another policy version": ("stale_weights", {"sampler": WrongVersion}, {}, "are of policy version 7, and of version 0"),
    "NaN log-probabilities": ("mismatch", {"sampler": NanLogprob}, {}, "differ by nan nats a token"),
    "other log-probabilities": ("mismatch", {"sampler": Improbable}, {}, "differ by 5 nats a token"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_warn_goes_on(fault, tokenizer, tmp_path, caplog):
    name, change, limits, said = FAULTS[fault]
    settings = {"sampler": Faulty} | change
    module, _, _ = one_run(tokenizer, tmp_path, watch=watching(name, policy="warn", **limits), optimizer=ADAM, **settings)
    assert fired(tmp_path, name) == [1]
    (warning,) = warnings(caplog)
    assert warning.startswith("outer step 1: ") and said in warning
    assert f"(watch.{name}.policy=warn; outer steps so far: 1)" in warning
    assert (module.policy_version, module.row["optimizer/steps"], module.row["optimizer/skipped_steps"]) == (1, 1, 0)
    if fault in ("a NaN weight", "an infinite gradient"):  # what it is to be skipped for
        assert module.policy.model.norm.weight.isnan().any()


OF_CHECK = {name: fault for fault, (name, *_) in FAULTS.items()}  # one for each


@pytest.mark.parametrize("fault", [fault for name, fault in OF_CHECK.items() if CHECKS[name].can_skip])
def test_skip_step_leaves_everything_as_it_was(fault, tokenizer, tmp_path):
    name, change, limits, _ = FAULTS[fault]
    settings = {"sampler": Faulty} | change
    watch = watching(name, policy="skip_step", **limits)
    module, _, _ = one_run(tokenizer, tmp_path, watch=watch, optimizer=ADAM, **settings)
    assert torch.equal(weights(module.policy).nan_to_num(7.0), Faulty.before.nan_to_num(7.0))
    assert not module.trainer.optimizers[0].state
    assert all(p.grad is None for p in module.policy.parameters())
    assert module.policy_version == 0
    assert module.refresh.versions == [0, 0]
    assert (module.row["optimizer/steps"], module.row["optimizer/skipped_steps"]) == (0, 1)
    assert fired(tmp_path, name) == [1]
    assert module.row["tokens/trained"] > 0 or module.row["completions/kept"] == 0  # the work was done
    assert (module.row["loss/total"] is None) == (name == "nonfinite")  # else it would be no number


@pytest.mark.parametrize("fault", OF_CHECK.values())
def test_stop_comes_before_the_step(fault, tokenizer, tmp_path):
    name, change, limits, said = FAULTS[fault]
    settings = {"sampler": Faulty} | change
    watch = watching(name, policy="stop", **limits)
    with pytest.raises(UserError) as error:
        one_run(tokenizer, tmp_path, watch=watch, optimizer=ADAM, **settings)
    message = str(error.value)
    assert message.startswith(f"outer step 1, watch.{name}: ") and said in message
    assert message.endswith(f"; watch.{name}.policy=warn goes on in spite of it.")
    assert (watch.stopped_by, watch.counts[name]) == (name, 1)
    assert torch.equal(weights(Faulty.policy_of_run).nan_to_num(7.0), Faulty.before.nan_to_num(7.0))


def test_off_sees_nothing(tokenizer, tmp_path, caplog):
    one_run(tokenizer, tmp_path, watch=Watch(QUIET), sampler=NanLogprob, loss=nan_loss([1]))
    assert not warnings(caplog)
    assert all(fired(tmp_path, name) == [0] for name in CHECKS)


# --- numbers that are not finite ---------------------------------------------------------------------------------------


def test_a_skipped_step_is_as_if_it_had_not_been(tokenizer, tmp_path):
    """Of three steps the second has no finite loss; with the one before it ends weights and Adam's state, bit by bit."""
    one, _, _ = one_run(tokenizer, tmp_path / "one", steps=1, optimizer=ADAM)
    two, _, _ = one_run(tokenizer, tmp_path / "two", steps=2, optimizer=ADAM, loss=nan_loss([2]))
    assert torch.equal(weights(one.policy), weights(two.policy))
    states = [m.trainer.optimizers[0].state_dict()["state"] for m in (one, two)]
    for ours, theirs in zip(*(s.values() for s in states), strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    three, _, _ = one_run(tokenizer, tmp_path / "three", steps=3, optimizer=ADAM, loss=nan_loss([2]))
    assert (three.policy_version, three.refresh.versions) == (2, [0, 1, 1, 2])
    rows = read_metrics(tmp_path / "three" / "metrics.csv")
    assert [r["optimizer/skipped_steps"] for r in rows] == [0, 1, 0]
    assert rows[2]["grad/norm"] > 0


def test_a_mean_over_optimizer_steps_leaves_out_what_is_not_finite(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path, loss=nan_loss([2]), minibatches=3, optimizer=SLOW, coef=0.1)
    assert (module.row["optimizer/steps"], module.row["optimizer/skipped_steps"]) == (2, 1)
    assert all(math.isfinite(v) for v in module.row.values() if v is not None)
    assert module.row["kl/ref_nats_per_token"] > 0


def test_the_kl_is_judged_by_the_whole_outer_step(tokenizer, tmp_path, monkeypatch):
    """On few completions one token can make the estimate: of 12 optimizer steps the first has 6 nats, the others hardly any."""
    calls = []

    def k3(logprobs_BT, ref_logprobs_BT):
        calls.append(1)
        return torch.full_like(logprobs_BT, 6.0 if len(calls) == 1 else 0.01)

    monkeypatch.setattr("dash_exp.training.module.k3", k3)
    ppo = {"loss": losses.ppo_clip, "minibatches": 12, "optimizer": SLOW, "coef": 1e-6}
    one_run(tokenizer, tmp_path, watch=watching("kl_blowup", policy="stop"), **ppo)
    calls.clear()
    watch = watching("kl_blowup", policy="skip_step", above=0.1)
    module, _, _ = one_run(tokenizer, tmp_path, watch=watch, **ppo)
    assert module.row["kl/ref_nats_per_token"] > 0.1
    assert (module.row["optimizer/steps"], module.row["optimizer/skipped_steps"]) == (11, 1)


def test_several_in_a_row_end_the_run(tokenizer, tmp_path):
    loss = nan_loss([2, 4, 5, 6])  # the third is sound, and the count begins anew
    with pytest.raises(UserError) as error:
        one_run(tokenizer, tmp_path, steps=8, loss=loss, watch=watching("nonfinite", policy="skip_step", in_a_row=3))
    assert str(error.value).startswith("outer step 6, watch.nonfinite: the loss is nan")
    assert "in 3 optimizer steps in a row. " in str(error.value)
    assert str(error.value).endswith("; watch.nonfinite.in_a_row=null goes on in spite of it.")
    endless = watching("nonfinite", policy="skip_step", in_a_row=None)
    module, _, _ = one_run(tokenizer, tmp_path, steps=5, loss=nan_loss([2, 3, 4, 5]), watch=endless)
    assert module.policy_version == 1


# --- completions -------------------------------------------------------------------------------------------------------


def test_what_is_said_of_completions_holds_for_all_optimizer_steps_on_them(tokenizer, tmp_path):
    watch = watching("truncated", policy="skip_step", above=0.9)
    module, _, before = one_run(tokenizer, tmp_path, watch=watch, loss=losses.ppo_clip, minibatches=4)
    assert (module.row["optimizer/steps"], module.row["optimizer/skipped_steps"]) == (0, 4)
    assert torch.equal(weights(module.policy), weights(before))


def test_coupled_sampling_is_judged_by_the_whole_outer_step(tokenizer, tmp_path):
    """One sampling call without a signal is none of its business."""
    first = []

    def one_call_of_three(problems, texts):
        first.append(1)
        return (parity_reward if len(first) == 2 else never_right)(problems, texts)

    one_run(tokenizer, tmp_path, sample_prompts=2, reward=one_call_of_three, watch=watching("no_signal", policy="stop"))
    with pytest.raises(UserError, match=r"watch\.no_signal"):
        one_run(tokenizer, tmp_path, sample_prompts=2, reward=never_right, watch=watching("no_signal", policy="stop"))


def test_a_reward_that_breaks_down_is_seen(tokenizer, tmp_path, caplog):
    watch = watching("reward_collapse", policy="warn", window=2, below=0.5)
    one_run(tokenizer, tmp_path, steps=6, reward=breaks(4), optimizer=SLOW, watch=watch)
    assert fired(tmp_path, "reward_collapse") == [0, 0, 0, 0, 1, 1]
    assert warnings(caplog)[0].startswith("outer step 5: the mean reward of the last 2 outer steps is 0, and was 0.")
    with pytest.raises(UserError, match=r"outer step 5, watch\.reward_collapse"):
        stop = watching("reward_collapse", policy="stop", window=2, below=0.5)
        one_run(tokenizer, tmp_path, steps=6, reward=breaks(4), optimizer=SLOW, watch=stop)


@pytest.mark.parametrize(
    ("rewards", "fires"),
    [
        ([0.8, 0.8, 0.3, 0.3], True),
        ([0.8, 0.8, 0.5, 0.5], False),  # 0.5 is not below half of 0.8
        ([0.5, 1.0, 0.6, 0.0], False),  # 0.3 is below half of 0.75, but 0.6 is not below 0.5
        ([0.2, 1.0, 0.3, 0.2], False),  # luck in a single step
        ([0.8, 0.9, 0.5, 0.5, 0.4, 0.4], True),  # against the best, however long ago
        ([0.8, 0.3, 0.3], False),  # too few
        ([-1.0, -1.0, -1.2, -1.2], False),  # rewards may be negative
        ([-1.0, -1.0, -1.6, -1.6], True),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([0.8, 0.8, math.nan, 0.3, 0.3], True),
    ],
)
def test_how_far_a_reward_must_fall(rewards, fires):
    watch = watching("reward_collapse", policy="warn", window=2, below=0.5)
    for reward in rewards:
        watch.look("outer step", {"reward/mean": reward})
        columns = watch.end_step(reward)
    assert columns["watch/reward_collapse"] == fires


def test_an_advantage_of_one_is_a_signal_whatever_the_reward(tokenizer, tmp_path):
    """SFT has no groups to compare, and every trace may be right."""
    one_run(
        tokenizer,
        tmp_path,
        advantage=advantages.constant,
        reward=never_right,
        group_size=1,
        watch=watching("no_signal", policy="stop"),
    )
    assert fired(tmp_path, "no_signal") == [0]


# --- what is kept of it ------------------------------------------------------------------------------------------------


def test_a_warning_comes_with_the_first_second_fourth_and_eighth_time(caplog):
    watch = watching("truncated", policy="warn", above=0.5)
    for step in range(1, 10):
        for _ in range(2):  # twice in an outer step counts once
            watch.look(f"outer step {step}", {"length/truncated_fraction": 0.9 if step != 3 else 0.1})
        watch.end_step(0.0)
    assert watch.counts["truncated"] == 8
    said = [(w.partition(":")[0], w.rpartition(": ")[2]) for w in warnings(caplog)]
    assert said == [("outer step 1", "1)"), ("outer step 2", "2)"), ("outer step 5", "4)"), ("outer step 9", "8)")]


def test_it_goes_on_from_rows_of_metrics_as_if_nothing_had_been(caplog):
    settings = QUIET | {"reward_collapse": {"policy": "warn", "window": 2}, "truncated": {"policy": "warn"}}
    rewards, cut = [0.8, 0.9, math.nan, 0.3, 0.1, 0.1, 0.1, 0.1], [1, 0, 1, 0, 1, 1, 0, 1]

    def steps(watch, which):
        rows = []
        for i in which:
            values = {"reward/mean": rewards[i], "length/truncated_fraction": float(cut[i])}
            watch.look(f"outer step {i + 1}", values)
            rows.append(values | watch.end_step(rewards[i]))
        return rows

    whole = Watch(settings)
    rows = steps(whole, range(8))
    expected = warnings(caplog)
    caplog.clear()
    first, second = Watch(settings), Watch(settings)
    base = {"step": 0, "reward/mean": None}
    halves = steps(first, range(4))
    second.restore([base, *halves])
    halves += steps(second, range(4, 8))
    assert [{k: v for k, v in r.items() if k != "reward/mean"} for r in halves] == [
        {k: v for k, v in r.items() if k != "reward/mean"} for r in rows
    ]
    assert sum(r["watch/reward_collapse"] for r in rows) == 4
    assert second.counts == whole.counts
    assert warnings(caplog) == expected


def test_a_run_that_skips_every_step_says_what_was_done(tmp_path):
    """Evaluations belong to their outer step, although the policy version is the same in all of them."""
    never = ["reward.pattern='Z:(\\S+)'", "watch.no_signal.policy=skip_step"]
    result = run.run(composed(*TINY, "steps=3", "eval.every=2", *never), tmp_path)
    assert result["status"] == "done"
    assert (result["optimizer_steps"], result["optimizer/skipped_steps"], result["watch/no_signal"]) == (0, 3, 3)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [r["accuracy/in_dist"] is None for r in rows] == [False, True, False, False]
    assert [r["policy/version"] for r in rows] == [0, 0, 0, 0]
    base, last = ROOT / "src/dash_exp/assets/tiny", tmp_path / "checkpoints" / "last"
    assert torch.equal(*(weights(AutoModelForCausalLM.from_pretrained(f)) for f in (base, last)))


def test_a_run_that_is_stopped_says_why(tmp_path):
    never = ["reward.pattern='Z:(\\S+)'", "watch.no_signal.policy=stop"]
    with pytest.raises(UserError, match=r"outer step 1, watch\.no_signal: no completion was kept"):
        run.run(composed(*TINY, *never), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["watch/stopped_by"], result["watch/no_signal"]) == ("failed", "no_signal", 1)
    assert "watch.no_signal" in result["error"]


# --- settings ----------------------------------------------------------------------------------------------------------


def test_the_configuration_has_the_defaults():
    settings = Watch(OmegaConf.to_container(composed().watch)).settings
    assert settings == Watch().settings
    assert {name: set(s) for name, s in composed().watch.items()} == {n: {"policy", *c.limits} for n, c in CHECKS.items()}


def test_settings_that_make_sense_are_not():
    for override in ("watch.nonfinite.in_a_row=null", "watch.clipped.policy=off", "watch.clipped.policy=false"):
        validate(composed(override))
    assert not Watch({"clipped": {"policy": False}}).look("", {"policy/clip_fraction": 1.0})
