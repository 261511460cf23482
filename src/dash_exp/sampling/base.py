"""The interface of all samplers, how to sample, and the seeds of the noise."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from dash_exp.core.types import Completion, Prompt


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy. `max_tokens` counts completion tokens.

    `start`: the completions are those of the group with the indices `start`, `start` + 1, ..., and have their noise.

    `stop`: a completion ends with the token that completes one of these texts, which stays a part of it.

    `top_p` below 1 samples from the smallest set of most likely tokens whose probabilities at that temperature add up to
    `top_p` (nucleus sampling, arXiv 1904.09751). It is for evaluation only: such completions have no log-probabilities.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    start: int = 0


class Sampler(Protocol):
    """Samples completions from the policy, with the weights that it was last given.

    A class with `continuous_batching = True` keeps its batch full however many completions it is asked for in one call, in
    bounded memory. Then evaluation asks for all of a test set at once.
    """

    @property
    def version(self) -> int | None:
        """Policy version of its weights; None before the first weights, where `rest` has given them up, and for samplers that
        do not use the policy.
        """

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        """`group_size` completions of each prompt: P x G in group-major order. Batching does not change the result.

        `key` seeds the noise, together with the problem and the index in the group. It must differ between steps.
        """

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Use these weights of the policy from now on, as version `version`.

        They are its `state_dict`, or for a policy with an adapter only the trained weights (`adapter.trained`).
        """

    def rest(self) -> None:
        """Release device memory: the policy is about to train, and nothing is sampled before the next outer step.

        Afterwards `version` may be None; then `load_weights` comes before the next sampling call.
        """

    def close(self) -> None:
        """End the sampler. Nothing is sampled after this."""


def noise_seed(key: tuple[int, ...], problem_id: str, index: int) -> np.random.SeedSequence:
    """Seed of the noise of one completion: (seed, outer step), problem, index in its group."""
    return np.random.SeedSequence([*key, zlib.crc32(problem_id.encode()), index])
