"""Sampler, reward and KL penalty of several ranks: each does its share of a call, and every rank gets the whole result.

Every rank must make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, tensor
from transformers import PreTrainedModel

from dash_exp.algorithms.kl_penalty import Penalty
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.distributed.ranks import Ranks, dealt_back
from dash_exp.models import sharded
from dash_exp.rewards.base import Reward, Scores
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.training.travel import packed, unpacked


class OfRanks:
    """A sampler of several ranks, without `sample`: all else is what `sampler` does on this rank."""

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler = sampler
        self.ranks = ranks

    @property
    def version(self) -> int | None:
        return self.sampler.version

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.sampler.load_weights(weights, version)

    def rest(self) -> None:
        self.sampler.rest()

    def close(self) -> None:
        self.sampler.close()


class SharedSampler(OfRanks):
    """Prompts in turn to each rank. The noise belongs to the problem, so it does not matter which rank samples it.

    Where the `policy` is sharded, it is whole while a sampler that uses it samples.
    """

    def __init__(self, sampler: Sampler, ranks: Ranks, policy: PreTrainedModel) -> None:
        super().__init__(sampler, ranks)
        self.policy = policy

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        mine = self.ranks.share(prompts)
        with sharded.gathered(self.policy):
            completions = self.sampler.sample(mine, group_size, sampling, key) if mine else []
        every = [unpacked(share) for share in self.ranks.gather(packed(completions))]
        groups = [[share[i : i + group_size] for i in range(0, len(share), group_size)] for share in every]
        return [completion for group in dealt_back(groups) for completion in group]


class FirstSampler(OfRanks):
    """The first rank's sampler, for calls that all ranks make: each gets the completions. The others have a `NoSampler`."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        completions = self.sampler.sample(prompts, group_size, sampling, key) if self.ranks.first else []
        return unpacked(self.ranks.from_first(packed(completions)))


class NoSampler:
    """Replaces the sampler on ranks that receive the completions from the first."""

    version = None

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        raise AssertionError("the first rank samples")

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Nothing to load."""

    def rest(self) -> None:
        """Nothing to release."""

    def close(self) -> None:
        """Nothing to close."""


class SharedReward:
    """Completions in turn to each rank. The attributes are those of the reward (see `rewards.base.Reward`)."""

    def __init__(self, reward: Reward, ranks: Ranks) -> None:
        self.reward = reward
        self.ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reward, name)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        mine = self.ranks.share(problems), self.ranks.share(texts)
        scores = self.reward(*mine) if mine[0] else Scores([])
        rewards, parts = scores.rewards, scores.components
        rows = self.ranks.join_shares([(r, {name: parts[name][i] for name in parts}) for i, r in enumerate(rewards)])
        broken = self.ranks.gather((scores.timeouts, scores.errors))
        return Scores(
            [reward for reward, _ in rows],
            timeouts=sum(timeouts for timeouts, _ in broken),
            errors=sum(errors for _, errors in broken),
            components={name: [part[name] for _, part in rows] for name in rows[0][1]},
        )


class SharedPenalty:
    """Completions in turn to each rank, as a `kl_penalty.Penalty`."""

    def __init__(self, penalty: Penalty, ranks: Ranks) -> None:
        self.penalty = penalty
        self.ranks = ranks

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        mine = self.ranks.share(prompts), self.ranks.share(completions)
        found = [values_B.tolist() for values_B in self.penalty(*mine)] if mine[0] else [[], []]
        penalty_B, k3_B = zip(*self.ranks.join_shares(list(zip(*found, strict=True))), strict=True)
        return tensor(penalty_B), tensor(k3_B)
