"""The gradient of an optimizer step, added up over micro-batches; and what is done where memory runs out on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.algorithms.weighting import StepCounts
from dash_exp.core.errors import UserError
from dash_exp.core.types import MicroBatch, Sample
from dash_exp.distributed.ranks import Ranks
from dash_exp.models import packing
from dash_exp.models.batch import balanced, collate, cuts
from dash_exp.models.passes import Passes
from dash_exp.models.sharded import is_sharded
from dash_exp.training.sums import StepSums

log = logging.getLogger(__name__)


class Accumulator:
    """Adds up the gradient of one optimizer step, which is summed and not yet divided by its denominator.

    `loss` gives the loss of a micro-batch and adds what it measures to the sums. `empty_loss` makes the same passes with a
    gradient of 0. `backward` and `zero_grad` are those of the training loop. Where memory runs out in a pass, `micro_tokens` is
    halved for the rest of the run and the gradient of the optimizer step is computed again.

    `counts` and `sums` are those of the optimizer step so far: `counts` of all ranks, `sums` of this one.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        passes: Passes,
        ranks: Ranks,
        loss: Callable[[MicroBatch, StepSums], Tensor],
        empty_loss: Callable[[MicroBatch], Tensor],
        backward: Callable[[Tensor], None],
        zero_grad: Callable[[], None],
    ) -> None:
        self.policy = policy
        self.passes = passes
        self.micro_tokens = passes.micro_tokens
        self.ranks = ranks
        self.loss = loss
        self.empty_loss = empty_loss
        self.backward = backward
        self.zero_grad = zero_grad
        self.start()

    def start(self) -> None:
        """The next optimizer step."""
        self.counts = StepCounts()
        self.sums = StepSums()
        self._calls: list[Sequence[Sample]] = []  # this rank's share of each sampling call

    def add(self, samples: Sequence[Sample], where: str) -> None:
        """Add the gradient of this rank's share of these completions. `where` begins messages about memory.

        Raises UserError where a single completion does not fit the memory. Where memory runs out, all completions that the
        optimizer step has seen are passed again: a backward pass that broke off has left a part of its gradient.
        """
        share = self._share(samples)
        self._calls.append(share)
        todo = [share]
        while (failed := self._pass(todo, where)) is not None:
            self._lower_budget(failed, where)
            todo = self._calls

    def sums_of_all_ranks(self) -> StepSums:
        """The sums over all ranks. Where memory ran out on one of them, all have its token budget from now on."""
        mine = StepSums()
        mine.add(self.sums)  # as plain numbers
        found = self.ranks.gather((mine, self.micro_tokens))
        self.micro_tokens = min(micro_tokens for _, micro_tokens in found)
        total = StepSums()
        for sums, _ in found:
            total.add(sums)
        return total

    def _share(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """This rank's part, of about as many tokens as the others'. Groups stay together: a prompt is computed once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.prompt_ids, []).append(i)
        units = list(groups.values()) if len(groups) >= 4 * self.ranks.size else [[i] for i in range(len(samples))]
        tokens = [sum(len(samples[i].completion_ids) for i in unit) + len(samples[unit[0]].prompt_ids) for unit in units]
        return [samples[i] for share in balanced(tokens, self.ranks.size)[self.ranks.index] for i in units[share]]

    def _pass(self, calls: Sequence[Sequence[Sample]], where: str) -> MicroBatch | None:
        """Forward and backward passes. Returns the micro-batch that did not fit the memory, None where all did."""
        passes = replace(self.passes, micro_tokens=self.micro_tokens)
        for samples in calls:
            more = self._more_passes(samples) if is_sharded(self.policy) else 0
            for _, batch in passes.micro_batches(self.policy, samples):
                if not self._fits(batch, where):
                    return batch
            for _ in range(more):
                self.backward(self.empty_loss(self._empty_batch()))
        return None

    def _more_passes(self, samples: Sequence[Sample]) -> int:
        """How many passes this rank makes fewer than another. Where the policy is sharded, all must take part in each."""
        mine = len(cuts(samples, self.micro_tokens, packing.enabled(self.policy)))
        return max(self.ranks.gather(mine)) - mine

    def _empty_batch(self) -> MicroBatch:
        sample = Sample((self.passes.pad_id,), np.array([self.passes.pad_id]), 0.0)
        return collate([sample], self.passes.pad_id, packing.enabled(self.policy)).to(self.policy.device)

    def _fits(self, batch: MicroBatch, where: str) -> bool:
        """One forward and backward pass. False where memory ran out; what it took on the device is free again then."""
        try:
            loss = self.loss(batch.to(self.policy.device), self.sums)
            self.backward(loss)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if is_sharded(self.policy):
                raise UserError(
                    where,
                    f"memory ran out in a backward pass of {batch.tokens} tokens, in which the other ranks take part",
                    "Lower batch.micro_tokens; the same command then resumes from the last snapshot",
                ) from error
            return False
        self.sums.add_pass(loss, batch)
        return True

    def _lower_budget(self, failed: MicroBatch, where: str) -> None:
        """Halve the token budget, and start the gradient of the optimizer step again. UserError for a completion alone."""
        if len(failed.input_ids_BL) == 1:
            less = "" if self.policy.is_gradient_checkpointing else "write model.gradient_checkpointing=true, "
            raise UserError(
                where,
                f"memory ran out in the backward pass of a single completion, of {failed.tokens} tokens with its prompt",
                f"Lower rollout.max_response_tokens, {less}or use a smaller model",
            )
        self.zero_grad()
        self.sums = StepSums()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_tokens = max(1, self.micro_tokens // 2)
        log.warning(
            "%s: memory ran out in a backward pass of %d tokens. From now on a pass has at most %d; write "
            "batch.micro_tokens=%d to start with that",
            where,
            failed.tokens,
            self.micro_tokens,
            self.micro_tokens,
        )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: an exception of its own on a GPU, words of its allocators elsewhere."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)
