"""The metrics of an outer step that follow from its completions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dash_exp.algorithms.advantages import all_equal
from dash_exp.algorithms.weighting import StepCounts
from dash_exp.core.types import Rollouts
from dash_exp.sampling.base import Sampler

Row = dict[str, float | int | None]


def rollout_metrics(rollouts: Sequence[Rollouts], counts: StepCounts, sampler: Sampler) -> Row:
    """What the completions of an outer step show, each a mean over all that were sampled. `counts` is that of all of them.

    Groups may have different sizes: those of `Rollouts.aside` are smaller.
    """
    rewards = torch.cat([r.rewards_PG.flatten() for r in rollouts])
    before = torch.cat([r.before_filter_PG.flatten() for r in rollouts])
    kept = torch.cat([r.advantages_PG[r.keep_PG] for r in rollouts])
    signal = torch.cat([~all_equal(r.rewards_PG) for r in rollouts])
    completions = [c for r in rollouts for c in r.completions]
    nll = [-sum(c.logprobs.tolist()) for c in completions if c.logprobs is not None]  # in 64 bits
    return {
        "reward/mean": float(rewards.mean()),
        **{f"reward/{n}": _mean([v for r in rollouts for v in r.components[n]]) for n in rollouts[0].components},
        "advantage/abs_mean": float(before.abs().mean()),
        "advantage/kept_abs_mean": float(kept.abs().mean()) if len(kept) else None,
        "filter/kept_fraction": counts.kept / counts.sampled,
        "filter/refill_rounds": sum(r.refill_rounds for r in rollouts),
        "select/skipped_prompts": sum(r.skipped for r in rollouts),
        "select/screened_out_prompts": sum(len(r.aside.prompts) for r in rollouts if r.aside is not None),
        "groups/signal_fraction": float(signal.float().mean()),
        "length/mean_tokens": counts.sampled_tokens / counts.sampled,
        "length/truncated_fraction": sum(c.truncated for c in completions) / counts.sampled,
        "policy/nll_nats_per_token": math.fsum(nll) / counts.sampled_tokens if nll else None,
        "sampler/servers": getattr(sampler, "active_servers", None),
        "sampler/resent_prompts": getattr(sampler, "resent_prompts", None),
        "score/timeouts": sum(r.grader_timeouts for r in rollouts),
        "score/errors": sum(r.grader_errors for r in rollouts),
        "completions/sampled": counts.sampled,
        "completions/kept": counts.kept,
        "tokens/sampled": counts.sampled_tokens,
    }


def kl_in_reward(rollouts: Sequence[Rollouts]) -> float | None:
    """k3 in nats per token, where the KL stands in the reward: of all completions that were weighed. None where it does not."""
    weighed = [(r.kl_nats, sum(len(c.ids) for c in r.completions)) for r in rollouts if r.kl_nats is not None]
    return math.fsum(nats for nats, _ in weighed) / sum(tokens for _, tokens in weighed) if weighed else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
