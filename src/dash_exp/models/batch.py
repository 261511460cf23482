"""Cuts the completions of an outer step into the parts of its optimizer steps, and these into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dash_exp.core.types import MicroBatch, Sample
from dash_exp.models.packing import pack


def parts(n: int, epochs: int, minibatches: int, key: Sequence[int]) -> list[list[int]]:
    """Indices of the completions, of n, that each optimizer step uses: `epochs` passes over all, each cut into `minibatches`.

    PPO-Multi has K epochs, PPO-Mini K minibatches. With more than one minibatch each pass is shuffled, with random numbers
    keyed by `key`; sizes differ by at most one. `parts(4, 2, 1, key) -> [[0, 1, 2, 3], [0, 1, 2, 3]]`.
    """
    if minibatches == 1:
        return [list(range(n))] * epochs
    orders = [np.random.default_rng([*key, epoch]).permutation(n) for epoch in range(epochs)]
    return [part.tolist() for order in orders for part in np.array_split(order, minibatches)]


def cut(lengths: Sequence[tuple[int, int]], micro_tokens: int) -> list[list[int]]:
    """Indices of the samples in each padded micro-batch. `lengths`: (prompt tokens, completion tokens) of each sample.

    Samples are sorted by length, longest first: little is padded, and if memory is too small it runs out at the start. A
    micro-batch of n rows has n x (longest prompt + longest completion) <= micro_tokens, padding counted. A sample that is
    longer than the budget is alone in its micro-batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (sum(lengths[i]), lengths[i]), reverse=True)
    batches: list[list[int]] = []
    rows: list[int] = []
    widest = (0, 0)
    for i in order:
        wider = (max(widest[0], lengths[i][0]), max(widest[1], lengths[i][1]))
        if rows and (len(rows) + 1) * sum(wider) > micro_tokens:
            batches.append(rows)
            rows, wider = [], lengths[i]
        rows.append(i)
        widest = wider
    return [*batches, rows] if rows else batches


def cut_packed(samples: Sequence[Sample], micro_tokens: int) -> list[list[int]]:
    """Indices of the samples in each packed micro-batch: no padding, a prompt once, its completions next to each other.

    The prompt of the longest completion comes first. Prompts and completions have at most `micro_tokens` tokens together. The
    rows that attention computes with are padded, and have at most twice as many: one long completion widens all rows. A sample
    that is longer than the budget is alone.
    """
    longest: dict[tuple[int, ...], int] = {}
    for s in samples:
        longest[s.prompt_ids] = max(longest.get(s.prompt_ids, 0), len(s.prompt_ids) + len(s.completion_ids))

    def size(i: int) -> tuple[int, tuple[int, ...], int]:
        return longest[samples[i].prompt_ids], samples[i].prompt_ids, len(samples[i].completion_ids)

    batches: list[list[int]] = []
    rows: list[int] = []
    tokens, widest = 0, (0, 0)
    for i in sorted(range(len(samples)), key=size, reverse=True):
        prompt, completion = len(samples[i].prompt_ids), len(samples[i].completion_ids)
        more = completion if rows and samples[i].prompt_ids == samples[rows[-1]].prompt_ids else prompt + completion
        wider = (max(widest[0], prompt), max(widest[1], completion))
        if rows and (tokens + more > micro_tokens or (len(rows) + 1) * sum(wider) > 2 * micro_tokens):
            batches.append(rows)
            rows, tokens, more, wider = [], 0, prompt + completion, (prompt, completion)
        rows.append(i)
        tokens, widest = tokens + more, wider
    return [*batches, rows] if rows else batches


def balanced(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Divide items of these lengths into shares with about as many tokens each; returns the indices of each share.

    The longest item first, each to the share with the fewest tokens so far. `balanced([5, 1, 4], 2) -> [[0], [1, 2]]`.
    """
    found: list[list[int]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        lightest = tokens.index(min(tokens))
        found[lightest].append(i)
        tokens[lightest] += lengths[i]
    return [sorted(share) for share in found]


def micro_batches(
    samples: Sequence[Sample], micro_tokens: int, pad_id: int, packed: bool
) -> Iterator[tuple[list[int], MicroBatch]]:
    """The samples as micro-batches within the token budget (see `cut` and `cut_packed`): their indices, and tensors on the CPU.

    A micro-batch is built when it is asked for: packed, its attention mask is larger than its tokens. `packed`: whether the
    model reads packed rows (see `packing.enabled`).
    """
    for rows in cuts(samples, micro_tokens, packed):
        yield rows, collate([samples[i] for i in rows], pad_id, packed)


def cuts(samples: Sequence[Sample], micro_tokens: int, packed: bool) -> list[list[int]]:
    """Indices of the samples in each micro-batch (see `micro_batches`)."""
    if packed:
        return cut_packed(samples, micro_tokens)
    return cut([(len(s.prompt_ids), len(s.completion_ids)) for s in samples], micro_tokens)


def collate(samples: Sequence[Sample], pad_id: int, packed: bool = False) -> MicroBatch:
    """One micro-batch: prompts padded on the left, completions on the right (see `MicroBatch`). `packed` adds that layout."""
    n_prompt = max(len(s.prompt_ids) for s in samples)
    n_completion = max(len(s.completion_ids) for s in samples)
    input_ids_BL = np.full((len(samples), n_prompt + n_completion), pad_id)
    attention_mask_BL = np.zeros_like(input_ids_BL)
    sampled = all(s.logprobs is not None for s in samples)
    old_logprobs_BT = np.zeros((len(samples), n_completion), dtype=np.float32) if sampled else None
    for row, sample in enumerate(samples):
        start, end = n_prompt - len(sample.prompt_ids), n_prompt + len(sample.completion_ids)
        input_ids_BL[row, start:n_prompt], input_ids_BL[row, n_prompt:end] = sample.prompt_ids, sample.completion_ids
        attention_mask_BL[row, start:end] = 1
        if old_logprobs_BT is not None:
            old_logprobs_BT[row, : len(sample.completion_ids)] = sample.logprobs
    return MicroBatch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        attention_mask_BL=torch.from_numpy(attention_mask_BL),
        completion_mask_BT=torch.from_numpy(attention_mask_BL[:, n_prompt:]),
        advantages_B=torch.tensor([s.advantage for s in samples]),
        old_logprobs_BT=None if old_logprobs_BT is None else torch.from_numpy(old_logprobs_BT),
        packed=pack([(s.prompt_ids, s.completion_ids) for s in samples]) if packed else None,
    )
