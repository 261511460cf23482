"""The upper half of an outer step: problems -> sampled, graded and filtered completions.

One epoch of Lightning is one outer step. The training loader yields one `Rollouts` per sampling call and samples only when
it is asked to: once for the whole step (preemptive sampling), or just before each backward pass (coupled). With
`rollout.staleness` a thread samples the next steps while this one is trained on.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from dash_exp.algorithms.selection import Group, Selection, Uniform
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.core.types import Completion, Prompt, Rollouts, Sample
from dash_exp.core.watch import Watch
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.evaluator import Evaluation, Evaluator
from dash_exp.evaluation.progress import Progress
from dash_exp.models.passes import Passes
from dash_exp.models.sharded import is_sharded
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.refresh import Refresh
from dash_exp.training.scoring import Scoring, at_most, joined
from dash_exp.training.selecting import Candidates, Graded, groups_of, put_aside, screened
from dash_exp.training.travel import received, sent

# What `Rollouts` take of CPU memory at most: id, log-probability and 16 bytes of text, a token; objects and numbers, a
# completion. A token of a prompt is an integer of Python's with its place in a tuple, and text.
BYTES_PER_TOKEN = 4 + 4 + 16
BYTES_PER_PROMPT_TOKEN = 32 + 8 + 16
BYTES_PER_COMPLETION = 1024


def rollout_bytes(completions: int, tokens: int) -> float:
    """Bytes of CPU memory at most that so many completions take, of so many `tokens` together."""
    return tokens * BYTES_PER_TOKEN + completions * BYTES_PER_COMPLETION


@dataclass(frozen=True)
class SamplingPlan:
    """What an outer step samples: `group_size` G completions of each of `prompts` P prompts, M = P x G completions in all.

    `sample_prompts`: prompts of one sampling call; None samples all P at once. `seed` keys the order of the problems and the
    noise.
    """

    prompts: int
    group_size: int
    sampling: Sampling
    sample_prompts: int | None = None
    seed: int = 0

    @property
    def per_call(self) -> int:
        """Prompts of one sampling call."""
        return self.sample_prompts or self.prompts

    @property
    def calls(self) -> int:
        """Sampling calls of an outer step."""
        return -(-self.prompts // self.per_call)


class RolloutDataModule(L.LightningDataModule):
    """Samples again in every outer step, from the prompts `train` by the `plan` and the rule `selection`, and scores it all.

    `refresh` holds the sampler and gives it its weights; `train_sampler` replaces it in training where the completions are not
    the policy's own (SFT). A validation loader yields one item: its test set as the `evaluator` has graded it. `passes` and
    `watch` are for a check of the sampler against the policy. Of several `ranks` the first samples and scores for training and
    gives the others the results; where each does a share (see `shares`), leave them out. `shares_devices`: it samples on the
    devices of all ranks, in other processes (see `make_room`). Raises UserError where the
    training problems are fewer than a step needs, and where completions could take more than `memory_gb` of CPU memory.
    """

    def __init__(
        self,
        *,
        train: Sequence[Prompt],
        tests: Mapping[str, Sequence[Prompt]],
        plan: SamplingPlan,
        refresh: Refresh,
        scoring: Scoring,
        evaluator: Evaluator,
        passes: Passes,
        clock: Clock,
        train_sampler: Sampler | None = None,
        watch: Watch | None = None,
        memory_gb: float = math.inf,
        selection: Selection | None = None,
        ranks: Ranks = ALONE,
        shares_devices: bool = False,
    ) -> None:
        super().__init__()
        self.train_prompts = list(train)
        self.prompt_of = {prompt.problem.id: prompt for prompt in train}
        self.test_prompts = dict(tests)
        self.plan = plan
        self.refresh = refresh
        self.sampler = refresh.sampler
        self.train_sampler = train_sampler or refresh.sampler
        self.scoring = scoring
        self.evaluator = evaluator
        self.passes = passes
        self.clock = clock
        self.watch = watch or Watch()
        self.ranks = ranks
        self.shares_devices = shares_devices
        self.eval_timeouts = 0
        self.eval_errors = 0
        self._closed = False
        self._alone = threading.RLock()  # with the sampler and the reward
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._ahead: dict[int, Future[list[Rollouts]]] = {}
        if len(self.train_prompts) < plan.prompts:
            raise UserError(
                f"batch.prompts={plan.prompts}",
                f"is more than the {len(self.train_prompts)} training problems",
                f"Write batch.prompts={len(self.train_prompts)} or less, or give more problems",
            )
        self.selection = selection or Uniform()
        self.candidates = Candidates(self.train_prompts, plan.prompts, plan.seed, self.selection)
        self._selection_states: dict[int, dict[str, Any]] = {}  # by the number of outer steps before them
        self._check_memory(memory_gb)

    # --- training ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(_OuterStep(self, self.trainer.current_epoch), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rollouts stay in CPU memory; each micro-batch goes to the device by itself."""
        return batch

    def problems_of_step(self, step: int) -> list[Prompt]:
        """The P problems of outer step `step` (from 0), before any is skipped: see `data.order`."""
        return self.candidates.own(step)

    def selection_state(self, step: int) -> dict[str, Any]:
        """What the rule that selects prompts knew after `step` outer steps; those ahead of training have not changed it."""
        return self._selection_states[step]

    def make_room(self) -> None:
        """Every rank calls this before the sampler may wake. Where that is on the devices of the ranks, but not in their
        processes, it waits until none of them keeps memory there that it does not use. The reverse needs no wait: all ranks get
        their completions when the sampler sleeps again.
        """
        if self.shares_devices:
            with self.clock("sync"):
                torch.cuda.empty_cache()
                self.ranks.gather(None)

    def rollouts_of_step(self, step: int) -> Iterator[Rollouts]:
        """The sampling calls of an outer step: each made when it is asked for, or all of them while others were trained on."""
        if self.refresh.staleness == 0:
            yield from self._calls(step)
            return
        assert self.trainer is not None and self.trainer.max_epochs is not None
        for s in range(step, min(step + self.refresh.staleness + 1, self.trainer.max_epochs)):
            if s not in self._ahead:
                self._ahead[s] = self._thread.submit(self._all_calls, s)
        yield from self._ahead.pop(step).result()

    def _all_calls(self, step: int) -> list[Rollouts]:
        return list(self._calls(step))

    def _calls(self, step: int) -> Iterator[Rollouts]:
        prompts = self.candidates.chosen(step)
        groups: list[Group] = []
        for start in range(0, len(prompts), self.plan.per_call):
            with self._alone:
                if self._closed:
                    raise RuntimeError("the sampler was closed")
                rollouts = self.rollouts(prompts[start : start + self.plan.per_call], step)
                samples_again = self.train_sampler is self.sampler and start + self.plan.per_call < len(prompts)
                if not samples_again:  # an engine that slept after each of many calls would spend the step on it
                    with self.clock("sync"):
                        self.sampler.rest()
            groups += groups_of(rollouts)
            if start + self.plan.per_call >= len(prompts):
                self._observe(groups, step)
                rollouts = replace(rollouts, skipped=len(self.candidates.skipped))
            yield rollouts

    def _observe(self, groups: Sequence[Group], step: int) -> None:
        """Tell the rule what outer step `step` has sampled, and keep its state for the snapshots that may still need it."""
        self.selection.observe(groups)
        states = {s: state for s, state in self._selection_states.items() if s >= step - self.refresh.staleness}
        self._selection_states = states | {step + 1: self.selection.state()}

    def rollouts(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        """One sampling call: sample, grade and filter; and again with other prompts where the filter refills or groups are
        screened.
        """
        if self.train_sampler is self.sampler:
            with self.clock("sync"):
                self.refresh.bring(step)
        sample = self._refilled if self.selection.first is None else self._screened
        return sample(prompts, step)

    def _refilled(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        rollouts = self._sample(prompts, step)
        others = self.candidates.others(prompts, step)
        for _ in range(self.scoring.keep.refill_rounds):
            signal_P = rollouts.keep_PG.any(dim=1)
            missing = len(prompts) - int(signal_P.sum())
            share = max(float(signal_P.float().mean()), 1 / 8)  # the expected share of new groups that carry a signal
            more = list(islice(others, min(math.ceil(missing / share), len(prompts)))) if missing > 0 else []
            if not more:
                break
            rollouts = joined(rollouts, self._sample(more, step))
        return at_most(rollouts, len(prompts))

    def _screened(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        """As many groups as there are `prompts`, which are screened before all others."""

        def graded(prompts: Sequence[Prompt], start: int, count: int) -> Graded:
            completions, texts = self._completions(prompts, step, start, count)
            with self.clock("score"):
                return Graded(list(prompts), completions, texts, self.scoring.grade(prompts, texts))

        every = chain(prompts, self.candidates.others(prompts, step))
        groups, aside = screened(self.selection, every, len(prompts), self.plan.group_size, graded)
        version = self.train_sampler.version
        with self.clock("score"):
            rollouts = self.scoring(groups.prompts, groups.completions, groups.texts, step, version, groups.scores)
        return replace(rollouts, aside=None if aside is None else put_aside(aside, version))

    def _sample(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        completions, texts = self._completions(prompts, step, 0, self.plan.group_size)
        with self.clock("score"):
            return self.scoring(prompts, completions, texts, step, self.train_sampler.version)

    def _completions(self, prompts: Sequence[Prompt], step: int, start: int, count: int) -> tuple[list[Completion], list[str]]:
        """`count` completions of the group of each prompt, from the index `start` on, and their texts."""
        with self.clock("sample"):
            sampling = replace(self.plan.sampling, start=start)
            completions = self.train_sampler.sample(prompts, count, sampling, (self.plan.seed, step))
            return completions, self.evaluator.texts(prompts, completions)

    def _check_memory(self, memory_gb: float) -> None:
        """Refuse what could take more than `memory_gb`: every completion as long as allowed, every refill made."""
        plan, refills, beside = self.plan, self.scoring.keep.refill_rounds, self.selection.beside(self.plan.prompts)
        completions = (self.refresh.staleness + 1) * (plan.prompts * plan.group_size * (1 + refills) + beside)
        of_prompts = sum(len(p.ids) for p in self.train_prompts) * BYTES_PER_PROMPT_TOKEN
        need_gb = (rollout_bytes(completions, completions * plan.sampling.max_tokens) + of_prompts) / 1e9
        if need_gb > memory_gb:
            ahead = f" of {self.refresh.staleness + 1} outer steps" if self.refresh.staleness else ""
            refilled = f" and up to {refills} refills" if refills else ""
            screening = " with all screening calls" if beside else ""
            raise UserError(
                f"rollout.memory_gb={memory_gb:g}",
                f"is less than the {need_gb:.3g} GB of CPU memory that {completions:,} completions{ahead}{refilled}{screening} "
                f"of up to {plan.sampling.max_tokens:,} tokens can take",
                "Lower batch.prompts, batch.group_size, rollout.max_response_tokens, rollout.staleness, "
                "filter.refill_rounds or select.rounds; or raise it, where the machine has the memory",
            )

    def close(self) -> None:
        """End the sampler, and with it the thread."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.sampler.close()
        self._thread.shutdown()

    # --- evaluation --------------------------------------------------------------------------------------------------------

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(_Evaluation(self, test), batch_size=None) for test in self.test_prompts]

    def evaluate(self, test: str, prompts: Sequence[Prompt]) -> Evaluation:
        """A test set, graded. `eval_timeouts` and `eval_errors` count gradings that timed out or failed."""
        self.make_room()
        with self._alone:
            with self.clock("sync"):
                self.refresh.bring_newest()
            with self.clock("eval"):
                shown = Progress(test, len(prompts) * (1 + self.evaluator.n)) if self.ranks.first else None
                with contextlib.closing(shown) if shown else contextlib.nullcontext():
                    done = self.evaluator(test, prompts, shown)
                if self.ranks.first and not self.refresh.on_policy and not is_sharded(self.refresh.policy):
                    self._check_mismatch(prompts[:8])  # not where all ranks make the passes of the policy together
        self.eval_timeouts += done.timeouts
        self.eval_errors += done.errors
        return done

    def _check_mismatch(self, prompts: Sequence[Prompt]) -> None:
        """Whether greedy completions are those of the policy. In training steps stale weights would hide it."""
        completions = self.sampler.sample(prompts, 1, self.evaluator.greedy, ())
        samples = [Sample(p.ids, c.ids, 0.0, c.logprobs) for p, c in zip(prompts, completions, strict=True)]
        policy, passes = self.refresh.policy, replace(self.passes, temperature=1.0)
        total = largest = 0.0
        for _, batch in passes.micro_batches(policy, samples):
            batch = batch.to(policy.device)
            assert batch.old_logprobs_BT is not None
            with torch.no_grad():
                logprobs_BT = passes.log_probs(policy, batch)
            differences_BT = (logprobs_BT - batch.old_logprobs_BT).abs() * batch.completion_mask_BT
            total += float(differences_BT.sum())
            largest = max(largest, float(differences_BT.max()))
        mean = total / sum(len(c.ids) for c in completions)
        self.watch.look("evaluation", {"mismatch/mean_nats": mean, "mismatch/max_nats": largest, "policy/lag": 0})


class _OuterStep(IterableDataset):
    """The sampling calls of one outer step.

    Its length matters: Lightning prefetches from a loader without one, and would sample ahead.
    """

    def __init__(self, data: RolloutDataModule, step: int) -> None:
        self.data, self.step = data, step

    def __len__(self) -> int:
        return self.data.plan.calls

    def __iter__(self) -> Iterator[Rollouts]:
        self.data.make_room()
        rollouts = self.data.rollouts_of_step(self.step)
        if self.data.ranks.size == 1:
            return rollouts
        given = self.data.ranks.each_from_first(map(sent, rollouts), len(self))
        return (received(each, self.data.prompt_of) for each in given)


class _Evaluation(IterableDataset):
    """One item: a test set, graded. Every rank reads it, because each grades a share."""

    def __init__(self, data: RolloutDataModule, test: str) -> None:
        self.data, self.test = data, test

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Evaluation]:
        yield self.data.evaluate(self.test, self.data.test_prompts[self.test])
