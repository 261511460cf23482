"""What flows through one outer step: problems in, completions back, tensors for one backward pass.

Axes: P prompts, G completions of one prompt (the group), B = P x G completions in group-major order (all of prompt 0, then
all of prompt 1), C prompt tokens, T completion tokens.

Rollouts stay on the CPU as plain lists. Only a `MicroBatch` is padded, and only it goes to the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import BoolTensor, Tensor


@dataclass(frozen=True)
class Problem:
    """One task. `id` is unique within its data set and keys the sampling noise; `solution` is a worked trace, for SFT.

    `tests` is for programs: pieces of Python that run in order in one namespace and fail by raising (set-up, then asserts).
    """

    id: str
    prompt: str
    answer: str
    solution: str | None = None
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A problem and its token ids as the model will see them."""

    problem: Problem
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, the closing end-of-sequence token included where there is one.

    `logprobs` holds the log-probability (nats) of each token under the sampling distribution, temperature included; it is
    None for text that no policy sampled. `truncated` means that the token limit came before the end-of-sequence token.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    truncated: bool


@dataclass(frozen=True)
class Rollouts:
    """The graded completions of one sampling call, B = P x G in group-major order.

    `policy_version` is the number of optimizer steps behind the weights that sampled them, or None if no policy did.
    `rewards_PG` is what was graded, before any penalty. `before_filter_PG` holds the advantages that the filter saw, which are
    those of the loss unless the filter computes them anew. `grader_timeouts` and `grader_errors` count completions
    whose grading did not come to an end; their reward is 0. `components`: see `rewards.base.Scores`. `kl_nats`: k3 summed over
    all tokens, where the KL stands in the reward. `refill_rounds`: how many times more prompts were sampled in place of others.
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

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    def samples(self) -> list[Sample]:
        """Every completion with its prompt and its advantage, kept or not, in the order of `completions`."""
        advantages_B = self.advantages_PG.view(-1).tolist()
        return [
            Sample(self.prompts[i // self.group_size].ids, c.ids, advantages_B[i], c.logprobs)
            for i, c in enumerate(self.completions)
        ]


@dataclass(frozen=True)
class Sample:
    """One completion on its way into the loss. `logprobs`: see `Completion`."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Packed:
    """Where the tokens of B completions and of their P different prompts stand in one row of N (see `packing`).

    prompts_PC and completions_BT hold the place of each token among N, filled up on the right with 0; prompt_B says which of P
    each completion has. mask_B1TS: what a completion token sees of its prompt and its completion, S = C + T. back_N: where each
    token stands among the P x C and then B x T that attention gives back. Of the K completion tokens: before_K, the place of
    the token before it; row_K and column_K, its own place in (B, T).
    """

    ids_N: Tensor
    positions_N: Tensor
    prompts_PC: Tensor
    completions_BT: Tensor
    prompt_B: Tensor
    mask_B1TS: Tensor
    back_N: Tensor
    before_K: Tensor
    row_K: Tensor
    column_K: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. Prompts are padded on the left and completions on the right, so the completion tokens
    of every row are the last T columns:

        input_ids_BL       [pad pad p p p | c c c pad]     L = C + T
        attention_mask_BL  [ 0   0  1 1 1 | 1 1 1  0 ]
        completion_mask_BT                [ 1 1 1  0 ]
        old_logprobs_BT                   [ l l l  0 ]     of the policy that sampled; None if none did

    `packed` holds the same tokens without padding, where the model can read them so.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    completion_mask_BT: Tensor
    advantages_B: Tensor
    old_logprobs_BT: Tensor | None = None
    packed: Packed | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a pass computes: padding counted, and packed a shared prompt once."""
        return self.input_ids_BL.numel() if self.packed is None else len(self.packed.ids_N)

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.input_ids_BL.to(device),
            self.attention_mask_BL.to(device),
            self.completion_mask_BT.to(device),
            self.advantages_B.to(device),
            None if self.old_logprobs_BT is None else self.old_logprobs_BT.to(device),
            None if self.packed is None else self.packed.to(device),
        )
