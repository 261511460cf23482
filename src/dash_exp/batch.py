"""Cutting the completions of an outer step: into the parts of its optimizer steps, and these into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dash_exp.types import MicroBatch, Sample


def parts(n: int, epochs: int, minibatches: int, key: Sequence[int]) -> list[list[int]]:
    """Which of n completions each optimizer step sees, in order: `epochs` passes over all, each cut into `minibatches`.

    PPO-Multi is epochs K, PPO-Mini minibatches K. With more than one minibatch each pass is shuffled by `key`; sizes differ by
    at most one. `parts(4, 2, 1, key) -> [[0, 1, 2, 3], [0, 1, 2, 3]]`.
    """
    if minibatches == 1:
        return [list(range(n))] * epochs
    orders = [np.random.default_rng([*key, epoch]).permutation(n) for epoch in range(epochs)]
    return [part.tolist() for order in orders for part in np.array_split(order, minibatches)]


def cut(lengths: Sequence[tuple[int, int]], micro_tokens: int) -> list[list[int]]:
    """Indices of the micro-batches. `lengths` holds (prompt tokens, completion tokens) of each sample.

    Samples are sorted by length, longest first, so that little is padded and an excess of memory shows at once. A
    micro-batch of n rows takes n x (longest prompt + longest completion) <= micro_tokens, padding counted; a sample that is
    longer than the budget goes alone.
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


def micro_batches(samples: Sequence[Sample], micro_tokens: int, pad_id: int) -> list[tuple[list[int], MicroBatch]]:
    """The samples as padded tensors on the CPU, each micro-batch within the token budget (see `cut`), with their indices."""
    lengths = [(len(s.prompt_ids), len(s.completion_ids)) for s in samples]
    return [(rows, collate([samples[i] for i in rows], pad_id)) for rows in cut(lengths, micro_tokens)]


def collate(samples: Sequence[Sample], pad_id: int) -> MicroBatch:
    """Pad prompts on the left and completions on the right (see `MicroBatch`)."""
    n_prompt = max(len(s.prompt_ids) for s in samples)
    n_completion = max(len(s.completion_ids) for s in samples)
    input_ids_BL = torch.full((len(samples), n_prompt + n_completion), pad_id)
    attention_mask_BL = torch.zeros_like(input_ids_BL)
    sampled = all(s.logprobs is not None for s in samples)
    old_logprobs_BT = torch.zeros(len(samples), n_completion) if sampled else None
    for row, sample in enumerate(samples):
        start, end = n_prompt - len(sample.prompt_ids), n_prompt + len(sample.completion_ids)
        input_ids_BL[row, start:end] = torch.tensor(sample.prompt_ids + sample.completion_ids)
        attention_mask_BL[row, start:end] = 1
        if old_logprobs_BT is not None:
            old_logprobs_BT[row, : len(sample.completion_ids)] = torch.tensor(sample.logprobs)
    return MicroBatch(
        input_ids_BL=input_ids_BL,
        attention_mask_BL=attention_mask_BL,
        completion_mask_BT=attention_mask_BL[:, n_prompt:],
        advantages_B=torch.tensor([s.advantage for s in samples]),
        old_logprobs_BT=old_logprobs_BT,
    )
