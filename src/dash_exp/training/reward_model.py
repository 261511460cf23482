"""How a reward model learns to tell right completions from wrong ones: logistic regression on the logit of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn.functional import binary_cross_entropy_with_logits

from dash_exp.core.types import Problem
from dash_exp.models.batch import cut
from dash_exp.models.log_probs import autocast
from dash_exp.rewards.model import ModelReward

BATCH = 64  # completions of an optimizer step


@dataclass(frozen=True)
class Graded:
    """B completions, and which of them are right."""

    problems: list[Problem] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


def balanced(graded: Graded, seed: int) -> Graded:
    """As many right completions as wrong ones: all of the fewer kind, and some of the other by chance, in their order."""
    right = np.array(graded.right)
    least = min(int(right.sum()), int((~right).sum()))
    draw = np.random.default_rng((seed, len(right)))
    chosen = sorted(i for kind in (right, ~right) for i in draw.permutation(np.flatnonzero(kind))[:least].tolist())
    return Graded(*([values[i] for i in chosen] for values in (graded.problems, graded.texts, graded.right)))


def fit(
    judge: ModelReward, graded: Graded, epochs: int, lr: float, seed: int, dtype: torch.dtype = torch.float32
) -> Iterator[float]:
    """Train the classifier of `judge` by AdamW; the mean loss of each epoch, in nats per completion.

    The completions are in a new random order in each epoch, `BATCH` at a time. Those that it cannot read are left out. `dtype`:
    of matrix products.
    """
    optimizer = torch.optim.AdamW(judge.scorer.parameters(), lr=lr, weight_decay=0.0)
    ids = judge.ids(graded.problems, graded.texts)
    readable = judge.readable(ids)
    for epoch in range(epochs):
        total = 0.0
        order = np.random.default_rng((seed, epoch)).permutation(readable)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH].tolist()
            for rows in cut([(0, len(ids[i])) for i in batch], judge.max_tokens):
                chosen = [batch[row] for row in rows]
                with autocast(judge.scorer.device, dtype):
                    logits_B = judge.logits([ids[i] for i in chosen]).float()
                right_B = torch.tensor([float(graded.right[i]) for i in chosen], device=logits_B.device)
                loss = binary_cross_entropy_with_logits(logits_B, right_B, reduction="sum")
                (loss / len(batch)).backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(judge.scorer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        yield total / len(readable)


def measured(judge: ModelReward, graded: Graded) -> dict[str, float]:
    """How well the classifier judges completions that it has not learnt from.

    `accuracy`: the share on which logit > 0 says what is right, of completions as they come, most of which may be wrong. `auc`:
    the share of pairs of a right and a wrong completion in which the right one has the higher logit, ties counted half (the
    area under the ROC curve).
    """
    rewards = np.array(judge(graded.problems, graded.texts).rewards)
    right = np.array(graded.right)
    wins = rankdata(rewards)[right].sum() - right.sum() * (right.sum() + 1) / 2
    return {"accuracy": float(np.mean((rewards > 0.5) == right)), "auc": float(wins / (right.sum() * (~right).sum()))}
