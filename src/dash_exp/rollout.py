"""The upper half of an outer step: problems -> sampled, graded and filtered completions.

One epoch of Lightning is one outer step. The training loader yields one `Rollouts` per sampling call and samples only when
it is asked to: once for the whole step (preemptive sampling), or just before each backward pass (coupled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import BoolTensor, Tensor, tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from dash_exp.errors import UserError
from dash_exp.metrics import Clock
from dash_exp.reward import Reward
from dash_exp.sampler import Sampler, Sampling
from dash_exp.types import Completion, Problem, Prompt, Rollouts

Advantage = Callable[[Tensor], Tensor]
Filter = Callable[[Tensor, Tensor], BoolTensor]


class RolloutDataModule(L.LightningDataModule):
    """Samples anew in every outer step.

    `prompts` P and `group_size` G make M = P x G completions per outer step, `sample_prompts` prompts a sampling call (None:
    all P). Validation loaders yield greedy completions, one per test problem. `train_sampler` stands in for `sampler` in
    training where the completions are not the policy's own (SFT).
    """

    def __init__(
        self,
        *,
        train: Sequence[Problem],
        tests: Mapping[str, Sequence[Problem]],
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
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
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.train_sampler = train_sampler or sampler
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
        self.eval_timeouts = 0
        self.eval_errors = 0
        room = context - sampling.max_tokens
        self.train_prompts = self._tokenize(train, room, max_prompt_tokens, "data.train")
        if len(self.train_prompts) < prompts:
            raise UserError(
                f"batch.prompts={prompts}",
                f"is more than the {len(self.train_prompts)} training problems",
                "Lower it, or give more problems",
            )
        # A test set is never cut by length: its accuracy would be another one.
        self.test_prompts = {name: self._tokenize(test, room, None, f"data.tests.{name}") for name, test in tests.items()}

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
        """The P problems of outer step `step` (from 0): consecutive slices of a shuffled pass over the data, then of another.

        What is left at the end of a pass is skipped, so no problem comes twice in a step.
        """
        data_pass, i = divmod(step, len(self.train_prompts) // self.prompts)
        order = np.random.default_rng([self.seed, data_pass]).permutation(len(self.train_prompts))
        return [self.train_prompts[j] for j in order[i * self.prompts : (i + 1) * self.prompts]]

    def rollouts(self, prompts: Sequence[Prompt], step: int) -> Rollouts:
        """One sampling call: sample, grade, weigh and filter."""
        with self.clock("sample"):
            completions = self.train_sampler.sample(prompts, self.group_size, self.sampling, (self.seed, step))
            texts = self._texts(completions)
        with self.clock("score"):
            problems = [p.problem for p in prompts for _ in range(self.group_size)]
            scores = self.reward(problems, texts)
            rewards_PG = tensor(scores.rewards).view(len(prompts), self.group_size)
            advantages_PG = self.advantage(rewards_PG)
            keep_PG = self.keep(rewards_PG, advantages_PG)
        return Rollouts(
            prompts=list(prompts),
            completions=completions,
            texts=texts,
            rewards_PG=rewards_PG,
            advantages_PG=advantages_PG,
            keep_PG=keep_PG,
            policy_version=self.train_sampler.version,
            grader_timeouts=scores.timeouts,
            grader_errors=scores.errors,
        )

    def greedy_rewards(self, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards of one greedy completion of each prompt, shape (P,). Failed gradings are counted in `eval_*`."""
        with self.clock("eval"):
            completions = self.sampler.sample(prompts, 1, Sampling(self.sampling.max_tokens, temperature=0.0), key=())
            texts = self._texts(completions)
            scores = self.reward([p.problem for p in prompts], texts)
            self.eval_timeouts += scores.timeouts
            self.eval_errors += scores.errors
            return tensor(scores.rewards)

    def _texts(self, completions: Sequence[Completion]) -> list[str]:
        return self.tokenizer.batch_decode([list(c.ids) for c in completions], skip_special_tokens=True)

    def _tokenize(self, problems: Sequence[Problem], room: int, limit: int | None, where: str) -> list[Prompt]:
        if not problems:
            raise UserError(where, "has no problem left, test problems taken out", "Give problems that are not in the tests")
        ids = self.tokenizer([p.prompt for p in problems]).input_ids
        prompts = [Prompt(p, tuple(i)) for p, i in zip(problems, ids, strict=True)]
        kept = [p for p in prompts if limit is None or len(p.ids) <= limit]
        longest = max(kept, key=lambda p: len(p.ids), default=None)
        if longest is None:
            raise UserError(f"data.max_prompt_tokens={limit}", f"leaves no problem of {where}", "Raise it")
        if len(longest.ids) > room:
            raise UserError(
                f"{where}, problem {longest.problem.id}",
                f"its prompt of {len(longest.ids)} tokens and a completion of up to {self.sampling.max_tokens} do not fit "
                f"the model's context of {room + self.sampling.max_tokens} tokens",
                "Lower rollout.max_response_tokens"
                + (f", or leave longer problems out with data.max_prompt_tokens={room}" if room > 0 else ""),
            )
        return kept


class _OuterStep(IterableDataset):
    """The sampling calls of one outer step, each made when it is asked for.

    Its length matters: Lightning prefetches from a loader without one, and would sample ahead.
    """

    def __init__(self, data: RolloutDataModule, step: int) -> None:
        self.data, self.step = data, step

    def __len__(self) -> int:
        return self.data.sampling_calls

    def __iter__(self) -> Iterator[Rollouts]:
        prompts = self.data.problems_of_step(self.step)
        for start in range(0, len(prompts), self.data.sample_prompts):
            yield self.data.rollouts(prompts[start : start + self.data.sample_prompts], self.step)


class _Evaluation(IterableDataset):
    """Greedy rewards of a test set, some prompts at a time."""

    def __init__(self, data: RolloutDataModule, prompts: Sequence[Prompt]) -> None:
        self.data, self.prompts = data, prompts

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.data.eval_prompts)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.prompts), self.data.eval_prompts):
            yield self.data.greedy_rewards(self.prompts[start : start + self.data.eval_prompts])
