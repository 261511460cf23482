"""The data of one outer step: problems, prompts, completions, and the tensors of one backward pass.

Axes: P prompts, G completions of one prompt (the group), B = P x G completions in group-major order (all of prompt 0, then
all of prompt 1), C prompt tokens, T completion tokens.

Rollouts stay in CPU memory, the tokens of a completion as two arrays. Only a `MicroBatch` is padded and moved to the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import BoolTensor, Tensor

# 8 bytes a token; Python's own numbers, with their places in a tuple, take 80.
TokenIds = NDArray[np.int32]
LogProbs = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """One task. `id` is unique in its data set and keys the sampling noise. `solution`: a written trace, for SFT.

    `tests`: for programs, pieces of Python that run in order in one namespace (set-up, then asserts); one that raises fails.
    `messages`: the conversation that asks for the answer, (role, text) each, where the data has one; `prompt` is then its text
    for prompts that are no chat. `extra`: further columns of the data, for a reward.
    """

    id: str
    prompt: str
    answer: str
    solution: str | None = None
    tests: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Prompt:
    """A problem and the token ids of its prompt, as the model sees them.

    `prefill`: the beginning of the answer, which `ids` end with; rewards and records see it in front of the completion. `lead`:
    the text that a written solution stands behind; empty where the answer is a turn of its own in a chat, None = the problem's.
    `end`: the token that ends the assistant's turn in a chat; None = the tokenizer's end of sequence.
    """

    problem: Problem
    ids: tuple[int, ...]
    prefill: str = ""
    lead: str | None = None
    end: int | None = None


@dataclass(frozen=True, eq=False)
class Completion:
    """Sampled token ids, with the end-of-sequence token where there is one.

    `logprobs`: the log-probability (nats) of each token under the sampling distribution, temperature included; None for text
    that no policy sampled. `truncated`: the token limit was reached before the end. `stopped`: the last token completed a stop
    string (`Sampling.stop`), so it is text, and not an end-of-sequence token.

    Ids and log-probabilities may be given as any sequence. They are copied, because a row of a larger array would keep all of
    it in memory. Two completions are equal only if they are the same object.
    """

    ids: TokenIds
    logprobs: LogProbs | None
    truncated: bool
    stopped: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", np.array(self.ids, np.int32))
        if self.logprobs is not None:
            object.__setattr__(self, "logprobs", np.array(self.logprobs, np.float32))


@dataclass(frozen=True)
class Rollouts:
    """The graded completions of one sampling call, B = P x G in group-major order.

    `policy_version`: optimizer steps that the weights which sampled them have had; None if no policy did. `rewards_PG`: before
    any penalty. `before_filter_PG`: the advantages that the filter saw; those of the loss, `advantages_PG`, differ only if the
    filter computes them again. `keep_PG`: completions that enter the gradient. `grader_timeouts`, `grader_errors`: completions
    whose grading did not finish; their reward is 0. `components`: see `rewards.base.Scores`. `kl_nats`: k3 summed over all
    tokens, where the KL is part of the reward. `refill_rounds`: additional sampling calls, for prompts in place of others.
    `skipped`: how many prompts selection skipped in the outer step; in its last sampling call. `aside`: the first completions
    of prompts whose groups selection did not finish: recorded and counted, but not weighed.
    """

    prompts: list[Prompt]
    completions: list[Completion]
    texts: list[str]
    rewards_PG: Tensor
    advantages_PG: Tensor
    before_filter_PG: Tensor
    keep_PG: BoolTensor
    policy_version: int | None
    grader_timeouts: int = 0
    grader_errors: int = 0
    components: Mapping[str, list[float]] = field(default_factory=dict)
    kl_nats: float | None = None
    refill_rounds: int = 0
    skipped: int = 0
    aside: Rollouts | None = None

    @property
    def group_size(self) -> int:
        """G, completions of one prompt."""
        return len(self.completions) // len(self.prompts)

    def samples(self) -> list[Sample]:
        """Every completion with its prompt and advantage, kept or not, in the order of `completions`."""
        advantages_B = self.advantages_PG.view(-1).tolist()
        return [
            Sample(self.prompts[i // self.group_size].ids, c.ids, advantages_B[i], c.logprobs)
            for i, c in enumerate(self.completions)
        ]


@dataclass(frozen=True, eq=False)
class Sample:
    """One completion for the loss. `logprobs`: see `Completion`. `prompt_ids` say which samples have the same prompt."""

    prompt_ids: tuple[int, ...]
    completion_ids: TokenIds
    advantage: float
    logprobs: LogProbs | None = None


@dataclass(frozen=True)
class Packed:
    """The tokens of B completions and of their P different prompts in one row of N tokens (see `packing`).

    prompts_PC, completions_BT: the place of each token in the row, filled up on the right with 0. prompt_mask_PC: where a
    prompt is not filled up. prompt_B: which of the P prompts each completion has. back_N: the place of each token in the output
    of attention, P x C and then B x T. For the K completion tokens: before_K, the place of the token before it; row_K and
    column_K, its own place in (B, T).

    The same without padding, for attention of sequences of any length: the P prompts and the B completions have their queries
    one after the other, from query_starts, shape (P + B + 1,), and their keys from key_starts, at the places keys_S.
    """

    ids_N: Tensor
    positions_N: Tensor
    prompts_PC: Tensor
    prompt_mask_PC: Tensor
    completions_BT: Tensor
    prompt_B: Tensor
    back_N: Tensor
    before_K: Tensor
    row_K: Tensor
    column_K: Tensor
    query_starts: Tensor
    key_starts: Tensor
    keys_S: Tensor

    @cached_property
    def mask(self) -> Tensor:
        """What each completion token attends to in its prompt and completion, (B, 1, T, C + T). Made where it is asked for."""
        n_rows, width = self.completions_BT.shape
        sees_prompt_BTC = self.prompt_mask_PC[self.prompt_B, None].expand(-1, width, -1)
        sees_itself_TT = torch.ones(width, width, dtype=torch.bool, device=self.prompt_B.device).tril()
        return torch.cat([sees_prompt_BTC, sees_itself_TT.expand(n_rows, -1, -1)], dim=2)[:, None]

    def to(self, device: torch.device) -> Packed:
        """A copy on the device."""
        return Packed(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. Prompts are padded on the left and completions on the right, so the completion tokens
    of every row are the last T columns:

        input_ids_BL       [pad pad p p p | c c c pad]     L = C + T
        attention_mask_BL  [ 0   0  1 1 1 | 1 1 1  0 ]
        completion_mask_BT                [ 1 1 1  0 ]
        old_logprobs_BT                   [ l l l  0 ]     of the policy that sampled; None if none did

    `packed`: the same tokens without padding, where the model can read packed rows.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    completion_mask_BT: Tensor
    advantages_B: Tensor
    old_logprobs_BT: Tensor | None = None
    packed: Packed | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a pass computes: with padding, or packed with a shared prompt once."""
        return self.input_ids_BL.numel() if self.packed is None else len(self.packed.ids_N)

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on the device."""
        return MicroBatch(
            self.input_ids_BL.to(device),
            self.attention_mask_BL.to(device),
            self.completion_mask_BT.to(device),
            self.advantages_B.to(device),
            None if self.old_logprobs_BT is None else self.old_logprobs_BT.to(device),
            None if self.packed is None else self.packed.to(device),
        )
