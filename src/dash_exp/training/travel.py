"""Completions on their way between ranks: as a few arrays, not as an object for each of them or for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dash_exp.core.types import Completion, LogProbs, Prompt, Rollouts, TokenIds


@dataclass(frozen=True)
class Parcel:
    """B completions. `lengths_B`: of each in `ids`, where they follow each other, and in `logprobs` those that have any."""

    lengths_B: NDArray[np.int64]
    ids: TokenIds
    logprobs: LogProbs
    has_logprobs_B: NDArray[np.bool_]
    truncated_B: NDArray[np.bool_]
    stopped_B: NDArray[np.bool_]


@dataclass(frozen=True)
class Sent:
    """`Rollouts` without prompts and completions, the ids of the problems of the prompts, and the completions."""

    rest: Rollouts
    problems: list[str]
    completions: Parcel
    aside: Sent | None


def packed(completions: Sequence[Completion]) -> Parcel:
    logprobs = [c.logprobs for c in completions if c.logprobs is not None]
    return Parcel(
        np.array([len(c.ids) for c in completions], np.int64),
        np.concatenate([np.empty(0, np.int32), *(c.ids for c in completions)]),
        np.concatenate([np.empty(0, np.float32), *logprobs]),
        np.array([c.logprobs is not None for c in completions], np.bool_),
        np.array([c.truncated for c in completions], np.bool_),
        np.array([c.stopped for c in completions], np.bool_),
    )


def unpacked(sent: Parcel) -> list[Completion]:
    """The completions again, to the last bit."""
    ends_B = np.cumsum(sent.lengths_B)
    ends_of_logprobs_B = np.cumsum(np.where(sent.has_logprobs_B, sent.lengths_B, 0))
    return [
        Completion(
            sent.ids[ends_B[b] - length : ends_B[b]],
            sent.logprobs[ends_of_logprobs_B[b] - length : ends_of_logprobs_B[b]] if sent.has_logprobs_B[b] else None,
            bool(sent.truncated_B[b]),
            bool(sent.stopped_B[b]),
        )
        for b, length in enumerate(sent.lengths_B)
    ]


def sent(rollouts: Rollouts) -> Sent:
    """What goes to the other ranks, which have the prompts."""
    return Sent(
        replace(rollouts, prompts=[], completions=[], aside=None),
        [prompt.problem.id for prompt in rollouts.prompts],
        packed(rollouts.completions),
        sent(rollouts.aside) if rollouts.aside is not None else None,
    )


def received(given: Sent, prompts: Mapping[str, Prompt]) -> Rollouts:
    """The rollouts again. `prompts`: by the id of their problem."""
    return replace(
        given.rest,
        prompts=[prompts[problem] for problem in given.problems],
        completions=unpacked(given.completions),
        aside=received(given.aside, prompts) if given.aside is not None else None,
    )
