"""The upper half of an outer step: problems -> sampled, graded and filtered completions.

One epoch of Lightning is one outer step. The training loader yields one `Rollouts` per sampling call and samples only when
it is asked to: once for the whole step (preemptive sampling), or just before each backward pass (coupled). With
`rollout.staleness` a thread samples the next steps while this one is trained on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import BoolTensor, Tensor, tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from dash_exp.algorithms.advantages import group_leave_one_out
from dash_exp.algorithms.filters import Filter
from dash_exp.algorithms.kl import Schedule
from dash_exp.algorithms.kl_penalty import Penalty
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.core.types import Completion, Problem, Prompt, Rollouts, Sample
from dash_exp.core.watch import Watch
from dash_exp.data import order
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.evaluator import Evaluation, Evaluator
from dash_exp.models import packing
from dash_exp.models.batch import micro_batches
from dash_exp.models.log_probs import autocast, token_logprobs
from dash_exp.models.sharded import is_sharded
from dash_exp.rewards.base import Reward
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.refresh import Refresh

Advantage = Callable[[Tensor], Tensor]

# What `Rollouts` take of CPU memory at most: an integer and a float of Python's with their places in two tuples, and 16 bytes
# of text, a token; objects and numbers, a completion.
BYTES_PER_TOKEN = (32 + 8) + (32 + 8) + 16
BYTES_PER_COMPLETION = 1024


@dataclass(frozen=True)
class Truncated:
    """What becomes of completions that the token limit cut off: `score` them as they are, take `penalty` off their reward
    (`penalize`), or leave them out of the gradient (`mask`; they still count in their group's mean).
    """

    choice: str = "score"
    penalty: float = 0.0


class RolloutDataModule(L.LightningDataModule):
    """Samples anew in every outer step.

    `prompts` P and `group_size` G make M = P x G completions per outer step, `sample_prompts` prompts a sampling call (None:
    all P). Validation loaders yield graded test problems: a greedy completion of each, and `eval_n` sampled ones for pass@k
    with each k of `eval_k`; `eval_prompts` completions are sampled at a time. `refresh` holds the sampler and gives it its
    weights; `train_sampler` stands in for it in training where the completions are not the policy's own (SFT). `kl_penalty`,
    with the coefficients of `kl_coef`, is taken off the rewards (KL in the reward). `watch` and `micro_tokens`: see
    `PolicyModule`. Of several `ranks` the first does all of this and gives the others what came of it; where each does a
    share (see `shares`), leave them out. Raises UserError where completions could take more than `memory_gb` of CPU memory.
    """

    def __init__(
        self,
        *,
        train: Sequence[Problem],
        tests: Mapping[str, Sequence[Problem]],
        tokenizer: PreTrainedTokenizerBase,
        refresh: Refresh,
        reward: Reward,
        advantage: Advantage,
        keep: Filter,
        clock: Clock,
        prompts: int,
        group_size: int,
        sample_prompts: int | None,
        sampling: Sampling,
        context: int,
        max_prompt_tokens: int | None,
        eval_prompts: int,
        seed: int,
        train_sampler: Sampler | None = None,
        truncated: Truncated = Truncated(),
        kl_penalty: Penalty | None = None,
        kl_coef: Schedule | None = None,
        eval_n: int = 0,
        eval_k: Sequence[int] = (),
        eval_sampling: Sampling | None = None,
        watch: Watch | None = None,
        micro_tokens: int = 2048,
        memory_gb: float = math.inf,
        compute_dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.tokenizer = tokenizer
        self.refresh = refresh
        self.sampler = refresh.sampler
        self.train_sampler = train_sampler or refresh.sampler
        self.reward = reward
        self.advantage = advantage
        self.keep = keep
        self.clock = clock
        self.prompts = prompts
        self.group_size = group_size
        self.sample_prompts = sample_prompts or prompts
        self.sampling = sampling
        self.eval_prompts = eval_prompts
        self.seed = seed
        self.truncated = truncated
        self.kl_penalty = kl_penalty
        self.kl_coef = kl_coef
        greedy = Sampling(sampling.max_tokens, temperature=0.0)
        self.evaluator = Evaluator(self.sampler, reward, tokenizer, greedy, eval_n, tuple(eval_k), eval_sampling, seed)
        self.eval_timeouts = 0
        self.eval_errors = 0
        self.watch = watch or Watch()
        self.micro_tokens = micro_tokens
        self.compute_dtype = compute_dtype
        self._closed = False
        self._alone = threading.RLock()  # with the sampler and the reward
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._ahead: dict[int, Future[list[Rollouts]]] = {}
        self.train_prompts = tokenized(train, tokenizer, context, sampling.max_tokens, "data.train", max_prompt_tokens)
        if len(self.train_prompts) < prompts:
            raise UserError(
                f"batch.prompts={prompts}",
                f"is more than the {len(self.train_prompts)} training problems",
                "Lower it, or give more problems",
            )
        self._check_memory(memory_gb)
        # A test set is never cut by length: its accuracy would be another one.
        self.test_prompts = {
            name: tokenized(test, tokenizer, context, sampling.max_tokens, f"data.tests.{name}") for name, test in tests.items()
        }

    @property
    def sampling_calls(self) -> int:
        """Sampling calls per outer step."""
        return -(-self.prompts // self.sample_prompts)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(_OuterStep(self, self.trainer.current_epoch), batch_size=None)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(_Evaluation(self, prompts), batch_size=None) for prompts in self.test_prompts.values()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rollouts stay in CPU memory; each micro-batch goes to the device by itself."""
        return batch

    def problems_of_step(self, step: int) -> list[Prompt]:
        """The P problems of outer step `step` (from 0): see `data.order`."""
        return [self.train_prompts[i] for i in order.indices_of_step(step, self.prompts, len(self.train_prompts), self.seed)]

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
        prompts = self.problems_of_step(step)
        for start in range(0, len(prompts), self.sample_prompts):
            with self._alone:
                if self._closed:
                    raise RuntimeError("the sampler was closed")
                rollouts = self.rollouts(prompts[start : start + self.sample_prompts], step)
            yield rollouts

    def close(self) -> None:
        """End the sampler, and with it the thread."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.sampler.close()
        self._thread.shutdown()

    def rollouts(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        """One sampling call: sample, grade, weigh and filter; and again with other prompts where the filter refills."""
        if self.train_sampler is self.sampler:
            with self.clock("sync"):
                self.refresh.bring(step)
        rollouts = self._sample(prompts, step)
        for _ in range(self.keep.refill_rounds):
            signal_P = rollouts.keep_PG.any(dim=1)
            missing = len(prompts) - int(signal_P.sum())
            others = self._other_prompts(rollouts.prompts, step)
            if missing <= 0 or not others:
                break
            share = max(float(signal_P.float().mean()), 1 / 8)  # of the new groups that will carry a signal, as it looks
            more = self._sample(others[: min(math.ceil(missing / share), len(prompts))], step)
            rollouts = _joined(rollouts, more)
        with self.clock("sync"):
            self.sampler.rest()
        return _at_most(rollouts, len(prompts))

    def _sample(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        with self.clock("sample"):
            completions = self.train_sampler.sample(prompts, self.group_size, self.sampling, (self.seed, step))
            texts = self._texts(completions)
        with self.clock("score"):
            of_completion = [p for p in prompts for _ in range(self.group_size)]
            scores = self.reward([p.problem for p in of_completion], texts)
            rewards_PG = tensor(scores.rewards).view(len(prompts), self.group_size)
            truncated_PG = tensor([c.truncated for c in completions]).view_as(rewards_PG)
            penalty_PG, kl_nats = self._kl_penalty(of_completion, completions, step)
            before_PG = self._advantages(rewards_PG, truncated_PG, penalty_PG)
            keep_PG, advantages_PG = self.keep(rewards_PG, before_PG), before_PG
            if self.keep.recompute_advantages:
                kept = [
                    None if x is None else x[keep_PG].view(len(prompts), -1) for x in (rewards_PG, truncated_PG, penalty_PG)
                ]
                advantages_PG = before_PG.clone()
                advantages_PG[keep_PG] = self._advantages(*kept).flatten()  # type: ignore[arg-type]
            if self.truncated.choice == "mask":
                keep_PG = cast(BoolTensor, keep_PG & ~truncated_PG)
        return Rollouts(
            prompts=list(prompts),
            completions=completions,
            texts=texts,
            rewards_PG=rewards_PG,
            advantages_PG=advantages_PG,
            before_filter_PG=before_PG,
            keep_PG=keep_PG,
            policy_version=self.train_sampler.version,
            grader_timeouts=scores.timeouts,
            grader_errors=scores.errors,
            components=scores.components,
            kl_nats=kl_nats,
        )

    def _advantages(self, rewards_PG: Tensor, truncated_PG: Tensor, penalty_PG: Tensor | None) -> Tensor:
        """Advantages of the rewards less what truncation costs; and less the KL penalty against that of the others.

        The KL penalty has a baseline of its own and is not divided by the standard deviation of the rewards: its coefficient
        would be cancelled in a group of equal rewards.
        """
        if self.truncated.choice == "penalize":
            rewards_PG = rewards_PG - self.truncated.penalty * truncated_PG
        advantages_PG = self.advantage(rewards_PG)
        return advantages_PG if penalty_PG is None else advantages_PG - group_leave_one_out(penalty_PG)

    def _kl_penalty(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], step: int
    ) -> tuple[Tensor | None, float | None]:
        """Coefficient x KL of each completion, shape (P, G), and the KL of all in nats; None where the reward holds no KL."""
        if self.kl_penalty is None or self.kl_coef is None:
            return None, None
        penalty_B, k3_B = self.kl_penalty(prompts, completions)
        return self.kl_coef(step) * penalty_B.view(-1, self.group_size), float(k3_B.sum())

    def _other_prompts(self, taken: Sequence[Prompt], step: int) -> list[Prompt]:
        """Training problems that are not in `taken`, in an order of this step's own."""
        ids = {p.problem.id for p in taken}
        order = np.random.default_rng([self.seed, step, 1]).permutation(len(self.train_prompts))
        return [p for p in (self.train_prompts[i] for i in order) if p.problem.id not in ids]

    def evaluate(self, prompts: Sequence[Prompt]) -> Evaluation:
        """Some prompts of a test set, graded. Gradings that did not come to an end are counted in `eval_*`."""
        with self._alone:
            with self.clock("sync"):
                self.refresh.bring_newest()
            with self.clock("eval"):
                part = self.evaluator(prompts)
                if not self.refresh.on_policy and not is_sharded(self.refresh.policy):  # whose passes all ranks make together
                    self._check_mismatch(prompts[:8])
        self.eval_timeouts += part.timeouts
        self.eval_errors += part.errors
        return part

    def _check_mismatch(self, prompts: Sequence[Prompt]) -> None:
        """Whether greedy completions are those of the policy. In training steps their lag would hide it."""
        completions = self.sampler.sample(prompts, 1, self.evaluator.greedy, ())
        samples = [Sample(p.ids, c.ids, 0.0, c.logprobs) for p, c in zip(prompts, completions, strict=True)]
        policy = self.refresh.policy
        total = largest = 0.0
        for _, batch in micro_batches(samples, self.micro_tokens, int(self.tokenizer.pad_token_id), packing.enabled(policy)):
            batch = batch.to(policy.device)
            assert batch.old_logprobs_BT is not None
            with torch.no_grad(), autocast(policy.device, self.compute_dtype):
                differences_BT = (token_logprobs(policy, batch, 1.0) - batch.old_logprobs_BT).abs() * batch.completion_mask_BT
            total += float(differences_BT.sum())
            largest = max(largest, float(differences_BT.max()))
        mean = total / sum(len(c.ids) for c in completions)
        self.watch.look("evaluation", {"mismatch/mean_nats": mean, "mismatch/max_nats": largest, "policy/lag": 0})

    def _check_memory(self, memory_gb: float) -> None:
        """Refuse what could take more than `memory_gb`: every completion as long as allowed, every refill made."""
        rounds = 1 + self.keep.refill_rounds
        completions = (self.refresh.staleness + 1) * self.prompts * self.group_size * rounds
        tokens = completions * self.sampling.max_tokens + sum(len(p.ids) for p in self.train_prompts)
        need_gb = (tokens * BYTES_PER_TOKEN + completions * BYTES_PER_COMPLETION) / 1e9
        if need_gb > memory_gb:
            ahead = f" of {self.refresh.staleness + 1} outer steps" if self.refresh.staleness else ""
            refills = f" and up to {self.keep.refill_rounds} refills" if self.keep.refill_rounds else ""
            raise UserError(
                f"rollout.memory_gb={memory_gb:g}",
                f"is less than the {need_gb:.3g} GB of CPU memory that {completions:,} completions{ahead}{refills} of up to "
                f"{self.sampling.max_tokens:,} tokens can take",
                "Lower batch.prompts, batch.group_size, rollout.max_response_tokens, rollout.staleness or "
                "filter.refill_rounds; or raise it, where the machine has the memory",
            )

    def _texts(self, completions: Sequence[Completion]) -> list[str]:
        return self.tokenizer.batch_decode([list(c.ids) for c in completions], skip_special_tokens=True)


def tokenized(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_tokens: int,
    where: str,
    limit: int | None = None,
) -> list[Prompt]:
    """The problems with their token ids, those of more than `limit` tokens left out.

    Raises UserError where nothing is left, and where a prompt and a completion of `max_tokens` exceed the model's `context`.
    """
    if not problems:
        raise UserError(where, "has no problem left, test problems taken out", "Give problems that are not in the tests")
    ids = tokenizer([p.prompt for p in problems], return_attention_mask=False).input_ids
    prompts = [Prompt(p, tuple(i)) for p, i in zip(problems, ids, strict=True)]
    kept = [p for p in prompts if limit is None or len(p.ids) <= limit]
    longest = max(kept, key=lambda p: len(p.ids), default=None)
    if longest is None:
        raise UserError(f"data.max_prompt_tokens={limit}", f"leaves no problem of {where}", "Raise it")
    room = context - max_tokens
    if len(longest.ids) > room:
        raise UserError(
            f"{where}, problem {longest.problem.id}",
            f"its prompt of {len(longest.ids)} tokens and a completion of up to {max_tokens} do not fit "
            f"the model's context of {context} tokens",
            "Lower rollout.max_response_tokens"
            + (f", or leave longer problems out with data.max_prompt_tokens={room}" if room > 0 else ""),
        )
    return kept


def _joined(first: Rollouts, second: Rollouts) -> Rollouts:
    """Both sampling calls as one."""
    return Rollouts(
        prompts=first.prompts + second.prompts,
        completions=first.completions + second.completions,
        texts=first.texts + second.texts,
        rewards_PG=torch.cat([first.rewards_PG, second.rewards_PG]),
        advantages_PG=torch.cat([first.advantages_PG, second.advantages_PG]),
        before_filter_PG=torch.cat([first.before_filter_PG, second.before_filter_PG]),
        keep_PG=cast(BoolTensor, torch.cat([first.keep_PG, second.keep_PG])),
        policy_version=first.policy_version,
        grader_timeouts=first.grader_timeouts + second.grader_timeouts,
        grader_errors=first.grader_errors + second.grader_errors,
        components={name: values + second.components[name] for name, values in first.components.items()},
        kl_nats=None if first.kl_nats is None or second.kl_nats is None else first.kl_nats + second.kl_nats,
        refill_rounds=first.refill_rounds + 1,
    )


def _at_most(rollouts: Rollouts, prompts: int) -> Rollouts:
    """Of the groups that kept something only the first `prompts`: a refill may have found more."""
    signal_P = rollouts.keep_PG.any(dim=1)
    keep_PG = rollouts.keep_PG & (signal_P.cumsum(0) <= prompts)[:, None]
    return replace(rollouts, keep_PG=cast(BoolTensor, keep_PG))


class _OuterStep(IterableDataset):
    """The sampling calls of one outer step.

    Its length matters: Lightning prefetches from a loader without one, and would sample ahead.
    """

    def __init__(self, data: RolloutDataModule, step: int) -> None:
        self.data, self.step = data, step

    def __len__(self) -> int:
        return self.data.sampling_calls

    def __iter__(self) -> Iterator[Rollouts]:
        return self.data.ranks.each_from_first(self.data.rollouts_of_step(self.step), len(self))


class _Evaluation(IterableDataset):
    """A test set, graded some prompts at a time."""

    def __init__(self, data: RolloutDataModule, prompts: Sequence[Prompt]) -> None:
        self.data, self.prompts = data, prompts
        self.at_a_time = max(1, data.eval_prompts // max(1, data.evaluator.n))

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.at_a_time)

    def __iter__(self) -> Iterator[Evaluation]:
        starts = range(0, len(self.prompts), self.at_a_time)
        parts = (self.data.evaluate(self.prompts[start : start + self.at_a_time]) for start in starts)
        return self.data.ranks.each_from_first(parts, len(self))
