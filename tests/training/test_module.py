"""The optimizer step: what enters the gradient, and what must not change it. Runs Lightning's real loop on a nano policy."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch
from nano_runs import SLOW, close, gradient, never_right, one_run, parity_reward

from dash_exp.algorithms import filters, kl, losses
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.models import log_probs
from dash_exp.models.batch import collate, parts
from dash_exp.rewards.base import Scores
from dash_exp.sampling.hf import HFSampler
from dash_exp.training.module import PolicyModule


def written_out(before, rollouts, reference=None, coef=0.0):
    """The same gradient in plain PyTorch, completion by completion, from the formula in the paper."""
    policy = copy.deepcopy(before)
    completions = [c for r in rollouts for c in r.completions]
    prompts = [p for r in rollouts for p in r.prompts for _ in range(4)]
    rewards = torch.cat([r.rewards_PG for r in rollouts])
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    loss = 0
    for prompt, completion, advantage in zip(prompts, completions, advantages, strict=True):
        ids = torch.tensor([[*prompt.ids, *completion.ids]])
        steps = range(len(prompt.ids) - 1, ids.shape[1] - 1)
        new = torch.log_softmax(policy(ids).logits[0], -1)
        logprobs = torch.stack([new[t, ids[0, t + 1]] for t in steps])
        penalty = 0.0
        if coef:
            old = torch.log_softmax(reference(ids).logits[0], -1).detach()
            ratio = torch.stack([old[t, ids[0, t + 1]] for t in steps]) - logprobs
            penalty = coef * (ratio.exp() - ratio - 1).mean()
        loss = loss - advantage * logprobs.mean() + penalty
    (loss / len(completions)).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_the_step_is_the_policy_gradient_written_out(tokenizer, tmp_path):
    module, _, before = one_run(tokenizer, tmp_path)
    close(gradient(module, before), written_out(before, module.rollouts_of_step))


def test_callbacks_of_lightning_can_stop_or_save_by_reward_loss_and_accuracy(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path)
    known = module.trainer.callback_metrics
    for name in ("reward/mean", "loss/total", "accuracy/in_dist"):
        assert float(known[name]) == pytest.approx(module.row[name])


@pytest.mark.parametrize("micro_tokens", [1, 40, 97])
def test_the_gradient_does_not_depend_on_micro_tokens(tokenizer, tmp_path, micro_tokens):
    whole, _, before = one_run(tokenizer, tmp_path)
    cut, _, _ = one_run(tokenizer, tmp_path, micro_tokens=micro_tokens)
    close(gradient(cut, before), gradient(whole, before))


@pytest.mark.parametrize("sample_prompts", [1, 2, 4])
def test_coupled_sampling_gives_the_gradient_of_preemptive_sampling(tokenizer, tmp_path, sample_prompts):
    preemptive, _, before = one_run(tokenizer, tmp_path)
    coupled, data, _ = one_run(tokenizer, tmp_path, sample_prompts=sample_prompts)
    assert len(coupled.rollouts_of_step) == data.plan.calls > 1
    close(gradient(coupled, before), gradient(preemptive, before))


def test_coupled_sampling_alternates_with_backward(tokenizer, tmp_path, monkeypatch):
    """Each sampling call is followed by its own backward pass before the next call: nothing is sampled ahead."""
    events = []
    sample, backward = HFSampler.sample, PolicyModule.manual_backward

    def note_sample(self, prompts, group_size, sampling, key):
        if key:  # evaluation has no key
            events.append("sample")
        return sample(self, prompts, group_size, sampling, key)

    def note_backward(self, *args, **kwargs):
        events.append("backward")
        backward(self, *args, **kwargs)

    monkeypatch.setattr(HFSampler, "sample", note_sample)
    monkeypatch.setattr(PolicyModule, "manual_backward", note_backward)
    one_run(tokenizer, tmp_path, sample_prompts=2, steps=2)
    assert events == ["sample", "backward"] * 6


def test_dropped_completions_are_in_no_forward_pass(tokenizer, tmp_path, monkeypatch):
    """Count every token that reaches the policy or the reference in training: exactly the kept completions and prompts."""
    seen = []
    logprobs = log_probs.token_logprobs

    def count(model_, batch, temperature):
        seen.append(int(batch.attention_mask_BL.sum()))
        return logprobs(model_, batch, temperature)

    monkeypatch.setattr("dash_exp.models.passes.token_logprobs", count)
    some = filters.AdvantageAbove(0.9)
    module, _, _ = one_run(tokenizer, tmp_path, keep=some, coef=0.04, micro_tokens=60)
    kept = [s for r in module.rollouts_of_step for s, keep in zip(r.samples(), r.keep_PG.flatten(), strict=True) if keep]
    assert 0 < len(kept) < 24
    expected = sum(len(s.prompt_ids) + len(s.completion_ids) for s in kept)
    assert sum(seen) == 2 * expected  # once through the policy, once through the reference
    assert module.row["tokens/trained"] == expected
    assert module.row["completions/kept"] == len(kept)
    for rollouts in module.rollouts_of_step:
        assert (rollouts.keep_PG == (rollouts.advantages_PG.abs() > 0.9)).all()


def test_filter_at_zero_equals_no_filter_where_every_group_has_a_signal(tokenizer, tmp_path):
    def mixed(problems, texts):
        return Scores([float(i % 4 == 0) for i in range(len(texts))])  # 1 0 0 0 in every group

    at_zero = filters.AdvantageAbove(0.0)
    filtered, _, before = one_run(tokenizer, tmp_path, keep=at_zero, reward=mixed, coef=0.04)
    unfiltered, _, _ = one_run(tokenizer, tmp_path, reward=mixed, coef=0.04)
    assert filtered.row["filter/kept_fraction"] == 1.0
    assert torch.equal(gradient(filtered, before), gradient(unfiltered, before))


def test_filter_at_zero_without_kl_equals_no_filter_always(tokenizer, tmp_path):
    """Without a KL term, completions with A = 0 have no gradient, and the denominator counts what was sampled."""
    at_zero = filters.AdvantageAbove(0.0)
    filtered, _, before = one_run(tokenizer, tmp_path, keep=at_zero)
    unfiltered, _, _ = one_run(tokenizer, tmp_path)
    assert filtered.row["filter/kept_fraction"] < 1.0
    close(gradient(filtered, before), gradient(unfiltered, before))


def test_nothing_kept_steps_as_unfiltered_does(tokenizer, tmp_path):
    """Adam keeps moving on its momentum when the gradient is 0; dropping every completion must not change that."""
    above = filters.AdvantageAbove(0.0)
    adam = partial(torch.optim.Adam, lr=0.01)
    calls = []

    def right_once(problems, texts):
        calls.append(1)
        return (parity_reward if len(calls) == 1 else never_right)(problems, texts)

    filtered, _, _ = one_run(tokenizer, tmp_path, keep=above, reward=right_once, steps=2, optimizer=adam)
    calls.clear()
    unfiltered, _, _ = one_run(tokenizer, tmp_path, reward=right_once, steps=2, optimizer=adam)
    assert filtered.row["completions/kept"] == 0
    for a, b in zip(filtered.policy.parameters(), unfiltered.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_kl_in_the_loss_written_out(tokenizer, tmp_path):
    module, _, before = one_run(tokenizer, tmp_path, coef=0.5)
    expected = written_out(before, module.rollouts_of_step, module.reference, coef=0.5)
    close(gradient(module, before), expected)
    without = written_out(before, module.rollouts_of_step)
    assert (expected - without).abs().max() > 1e-2 * expected.abs().max()  # the KL term is a part that shows
    assert module.row["kl/ref_nats_per_token"] > 0


def test_no_reference_at_kl_zero(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path)
    assert module.reference is None
    assert module.row["kl/ref_nats_per_token"] is None


def test_versions_and_optimizer_steps_are_counted(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path, sample_prompts=2, steps=2)
    assert module.policy_version == module.refresh.sampler.version == module.trainer.global_step == 2
    assert all(r.policy_version == 1 for r in module.rollouts_of_step)


def test_completions_of_another_version_are_refused(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"step 2, watch\.stale_weights: the completions have policy version 0 instead of 1"):
        module.training_step(module.rollouts_of_step[0], 0)


# --- several optimizer steps from one sampling call (PPO) ---------------------------------------------------------------


def test_a_ppo_step_with_ratio_one_is_the_policy_gradient_step(tokenizer, tmp_path):
    """The first step after sampling: pi is pi_old up to the rounding between decoding and training."""
    for loss in (losses.ppo_clip, losses.cispo, losses.gspo):
        ppo, _, before = one_run(tokenizer, tmp_path, loss=loss, coef=0.1)
        plain, _, _ = one_run(tokenizer, tmp_path, coef=0.1)
        assert ppo.row["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert ppo.row["policy/clip_fraction"] == 0
        close(gradient(ppo, before), gradient(plain, before))


def test_ppo_mini_with_one_minibatch_is_dash_without_its_filter(tokenizer, tmp_path):
    """Over three outer steps, so that what the first leaves behind counts as well. As configured: see also test_config."""
    mini, _, _ = one_run(tokenizer, tmp_path, loss=losses.ppo_clip, minibatches=1, steps=3, coef=0.04, optimizer=SLOW)
    no_gf, _, _ = one_run(tokenizer, tmp_path, steps=3, coef=0.04, optimizer=SLOW)
    assert mini.policy_version == no_gf.policy_version == 3
    for a, b in zip(mini.policy.parameters(), no_gf.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("epochs", "minibatches"), [(3, 1), (1, 4), (2, 3)])
def test_epochs_and_minibatches_are_the_steps_written_out(tokenizer, tmp_path, epochs, minibatches):
    """The same sequence of clipped steps in plain PyTorch, from the completions and log-probs that the sampler recorded."""
    module, _, before = one_run(
        tokenizer, tmp_path, loss=losses.ppo_clip, epochs=epochs, minibatches=minibatches, optimizer=SLOW, micro_tokens=60
    )
    (rollouts,) = module.rollouts_of_step
    samples = rollouts.samples()
    policy = copy.deepcopy(before)
    optimizer = SLOW(policy.parameters())
    clips = []
    for part in parts(24, epochs, minibatches, [0, 0]):
        loss = 0
        for s in (samples[i] for i in part):
            ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
            logprobs = torch.log_softmax(policy(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
            ratio = (logprobs[len(s.prompt_ids) - 1 :] - torch.tensor(s.logprobs)).exp()
            surrogate = torch.minimum(ratio * s.advantage, ratio.clamp(0.8, 1.2) * s.advantage)
            clips += (surrogate != ratio * s.advantage).tolist()
            loss = loss - surrogate.mean()
        optimizer.zero_grad()
        (loss / len(part)).backward()
        optimizer.step()
    close(gradient(module, before), gradient_of_steps(before, policy))
    assert module.row["optimizer/steps"] == module.policy_version == epochs * minibatches
    assert module.row["policy/clip_fraction"] == pytest.approx(sum(clips) / len(clips), abs=1e-6)
    assert module.row["policy/clip_fraction"] > 0  # the policy has moved far enough for the clip to act
    assert module.row["policy/approx_kl_nats_per_token"] > 0
    assert module.row["tokens/trained"] == epochs * sum(len(s.prompt_ids) + len(s.completion_ids) for s in samples)


def gradient_of_steps(before, after):
    return torch.cat([(a - b).detach().flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)])


def test_minibatches_divide_by_their_own_completions(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path, loss=losses.ppo_clip, minibatches=4, optimizer=SLOW)
    assert module.row["loss/denominator"] == 6
    assert module.row["completions/sampled"] == 24


# --- the coefficient of the KL ------------------------------------------------------------------------------------------


def test_the_coefficient_follows_its_schedule(tokenizer, tmp_path):
    linear = partial(kl.Linear, final=0.0)
    one_run(tokenizer, tmp_path, coef=0.4, schedule=linear, steps=3, optimizer=SLOW)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [r["kl/coef"] for r in rows] == pytest.approx([0.4, 0.2, 0.0])
    assert [r["kl/ref_nats_per_token"] is None for r in rows] == [False, False, True]  # no reference forward at 0


def test_an_adaptive_coefficient_sees_the_kl_of_each_step(tokenizer, tmp_path):
    adaptive = partial(kl.Adaptive, target=1e-9, rate=0.5)
    one_run(tokenizer, tmp_path, coef=0.4, schedule=adaptive, steps=3, optimizer=SLOW)
    assert [r["kl/coef"] for r in read_metrics(tmp_path / "metrics.csv")] == pytest.approx([0.4, 0.44, 0.484])


def test_mean_advantages_before_and_after_a_filter_that_computes_them_anew(tokenizer, tmp_path):
    """Rewards 1 0 0 0 in every group: |A| is 3/4 and 1/4 of 2; PODS keeps the 1 and one 0, whose |A| is 1/2 of sqrt 2."""

    def one_of_four(problems, texts):
        return Scores([float(i % 4 == 0) for i in range(len(texts))])

    module, _, _ = one_run(tokenizer, tmp_path, keep=filters.PODS(2), reward=one_of_four)
    assert module.row["advantage/abs_mean"] == pytest.approx(0.375 / 0.5001)
    assert module.row["advantage/kept_abs_mean"] == pytest.approx(0.5 / (0.5**0.5 + 1e-4))


# --- a sampler with weights of its own ----------------------------------------------------------------------------------


class OwnWeights(HFSampler):
    """An engine's part: it samples with a copy of the policy, which gets new weights when they are loaded."""

    def __init__(self, policy, tokenizer, max_sequences):
        super().__init__(copy.deepcopy(policy), tokenizer, max_sequences)
        self.loaded = []

    def load_weights(self, weights, version):
        self.policy.load_state_dict(weights)
        self.version = version
        self.loaded.append(version)


class Deaf(OwnWeights):
    """Says that it has taken over the weights, and has not: the fault that must not pass in silence."""

    def load_weights(self, weights, version):
        self.version = version


class Skewed(OwnWeights):
    """Computes a little differently from the trainer, as an engine with other kernels does."""

    def load_weights(self, weights, version):
        super().load_weights(weights, version)
        torch.manual_seed(version)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.02 * torch.randn_like(parameter)


def mismatches(caplog):
    return [r.getMessage() for r in caplog.records if "watch.mismatch" in r.getMessage()]


def trainer_logprobs(policy, sample):
    return log_probs.token_logprobs(policy, collate([sample], 0), 1.0)[0].detach()


def test_weights_of_its_own_make_no_difference(tokenizer, tmp_path):
    shared, _, before = one_run(tokenizer, tmp_path, steps=3)
    own, _, _ = one_run(tokenizer, tmp_path, steps=3, sampler=OwnWeights)
    assert torch.equal(gradient(own, before), gradient(shared, before))
    assert own.refresh.sampler.loaded == [0, 1, 2, 3]  # the last for the evaluation
    assert own.row["mismatch/max_nats"] < 1e-4
    assert own.row["policy/lag"] == 0


@pytest.mark.parametrize("staleness", [1, 2])
def test_stale_steps_are_those_of_older_weights(tokenizer, tmp_path, staleness):
    """Each step's log-probabilities are those of the weights `staleness` steps before it; the first ones are the base's."""
    seen = []

    class Seen(OwnWeights):
        def sample(self, prompts, group_size, sampling, key):
            if sampling.temperature > 0:
                seen.append((key[1], self.version))
            return super().sample(prompts, group_size, sampling, key)

    module, _, _ = one_run(tokenizer, tmp_path, steps=4, sampler=Seen, staleness=staleness, importance_cap=2.0)
    assert seen == [(step, max(0, step - staleness)) for step in range(4)]
    assert [r.policy_version for r in module.rollouts_of_step] == [3 - staleness]
    rows = read_metrics(tmp_path / "metrics.csv")[-4:]
    assert [row["policy/lag"] for row in rows] == [min(step, staleness) for step in range(4)]
    assert rows[0]["mismatch/max_nats"] < 1e-4 < rows[3]["mismatch/max_nats"]


def test_stale_steps_do_not_depend_on_which_thread_is_faster(tokenizer, tmp_path):
    first, _, before = one_run(tokenizer, tmp_path, steps=4, sampler=OwnWeights, staleness=1, importance_cap=2.0)
    second, _, _ = one_run(tokenizer, tmp_path, steps=4, sampler=OwnWeights, staleness=1, importance_cap=2.0)
    assert torch.equal(gradient(first, before), gradient(second, before))


def test_the_next_step_is_sampled_while_this_one_is_trained_on(tokenizer, tmp_path):
    """Sampling of step 1 waits for the update of step 0 to have begun, and that update for this sampling to have ended."""
    updating, sampled = threading.Event(), threading.Event()

    class Meets(OwnWeights):
        def sample(self, prompts, group_size, sampling, key):
            if sampling.temperature > 0 and key[1] == 1:
                assert updating.wait(60), "step 1 is sampled only after step 0"
            completions = super().sample(prompts, group_size, sampling, key)
            if sampling.temperature > 0 and key[1] == 1:
                sampled.set()
            return completions

    def loss(*arguments):
        updating.set()
        assert sampled.wait(60), "step 0 is trained on only before step 1 is sampled"
        return losses.policy_gradient(*arguments)

    one_run(tokenizer, tmp_path, steps=2, sampler=Meets, staleness=1, loss=loss)
    assert updating.is_set() and sampled.is_set()


def test_an_error_while_sampling_ahead_ends_the_run(tokenizer, tmp_path):
    class Breaks(OwnWeights):
        def sample(self, prompts, group_size, sampling, key):
            if key[1:] == (2,):
                raise RuntimeError("the engine is gone")
            return super().sample(prompts, group_size, sampling, key)

    with pytest.raises(RuntimeError, match="the engine is gone"):
        one_run(tokenizer, tmp_path, steps=4, sampler=Breaks, staleness=1)


@pytest.mark.parametrize("cap", [1.0, 2.0])
def test_truncated_importance_sampling_written_out(tokenizer, tmp_path, cap):
    """A sampler with other weights: each token's term is weighed by min(pi/pi_sampler, cap), which has no gradient."""
    module, _, before = one_run(tokenizer, tmp_path, sampler=Skewed, importance_cap=cap)
    (rollouts,) = module.rollouts_of_step
    policy, loss, over, tokens = copy.deepcopy(before), 0, 0, 0
    for sample in rollouts.samples():
        logprobs = log_probs.token_logprobs(policy, collate([sample], 0), 1.0)[0]
        ratio = (logprobs.detach() - torch.tensor(sample.logprobs)).exp()
        loss = loss - sample.advantage * (ratio.clamp(max=cap) * logprobs).mean()
        over, tokens = over + int((ratio > cap).sum()), tokens + len(ratio)
    (loss / len(rollouts.completions)).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    close(gradient(module, before), expected)
    unweighted = written_out(before, [rollouts])
    assert (expected - unweighted).abs().max() > 1e-3 * expected.abs().max()  # the weights are a part that shows
    assert 0 < over < tokens
    assert module.row["policy/clip_fraction"] == pytest.approx(over / tokens)


def test_the_mismatch_is_the_difference_of_the_log_probabilities(tokenizer, tmp_path, caplog):
    module, _, before = one_run(tokenizer, tmp_path, sampler=Skewed, keep=filters.AdvantageAbove(0.1))
    (rollouts,) = module.rollouts_of_step
    kept = [s for s, keep in zip(rollouts.samples(), rollouts.keep_PG.flatten(), strict=True) if keep]
    assert 0 < len(kept) < len(rollouts.completions)
    differences = torch.cat([(trainer_logprobs(before, s) - torch.tensor(s.logprobs)).abs() for s in kept])
    assert module.row["mismatch/max_nats"] == pytest.approx(float(differences.max()), rel=1e-3)
    assert module.row["mismatch/mean_nats"] == pytest.approx(float(differences.mean()), rel=1e-3)
    assert "outer step 1: the sampler reports the policy's weights" in caplog.text


def test_of_several_optimizer_steps_only_the_first_tells_the_mismatch(tokenizer, tmp_path):
    module, _, _ = one_run(tokenizer, tmp_path, loss=losses.ppo_clip, epochs=3)
    assert module.row["mismatch/max_nats"] < 1e-4 < module.row["policy/ratio_max_log"]


def test_stale_weights_are_warned_of_by_the_second_step(tokenizer, tmp_path, caplog):
    one_run(tokenizer, tmp_path, sampler=Deaf, steps=3)
    warnings = mismatches(caplog)
    assert [w.partition(":")[0] for w in warnings] == ["outer step 2", "outer step 3"] and "stale or incomplete" in warnings[0]


def test_where_weights_are_old_on_purpose_evaluation_finds_those_that_are_never_refreshed(tokenizer, tmp_path, caplog):
    one_run(tokenizer, tmp_path, sampler=Deaf, steps=3, staleness=1)
    (warning,) = mismatches(caplog)
    assert warning.startswith("evaluation: the sampler reports the policy's weights")


def test_a_refreshed_sampler_is_not_warned_of(tokenizer, tmp_path, caplog):
    one_run(tokenizer, tmp_path, sampler=OwnWeights, steps=3)
    one_run(tokenizer, tmp_path, sampler=OwnWeights, steps=3, staleness=1)  # old on purpose
    assert not mismatches(caplog)
