"""Samplers: what turns prompts into completions. `hf` uses Transformers, `vllm` an engine in this process, `vllm_server`
engines on this machine or others; `traces` and `teacher` hand out solutions already written.
"""

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

    `top_p` below 1 draws from the fewest most likely tokens whose probabilities at that temperature add up to `top_p` (nucleus
    sampling, arXiv 1904.09751). It is for evaluation: such completions carry no log-probabilities.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


class Sampler(Protocol):
    """Hands out completions of the policy whose weights it was last given."""

    @property
    def version(self) -> int | None:
        """Policy version of its weights; None before it was given any, and where no policy samples."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        """`group_size` completions of each prompt, P x G in group-major order, whatever the cutting into batches.

        `key` seeds the noise together with the problem and the index in the group; it must differ from step to step.
        """

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take over the policy's weights and call them `version`: its `state_dict`, of a policy with an adapter what is
        trained of it (`adapter.trained`).
        """

    def rest(self) -> None:
        """The policy is about to train: give back device memory until there is something to sample."""

    def close(self) -> None:
        """Nothing will be sampled any more."""


def noise_seed(key: tuple[int, ...], problem_id: str, index: int) -> np.random.SeedSequence:
    """Seed of one completion's noise: (seed, outer step), problem, index in its group."""
    return np.random.SeedSequence([*key, zlib.crc32(problem_id.encode()), index])
