"""SFT on the solutions in the data set: a sampler that returns these solutions instead of sampling from the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models.texts import behind, continuation, without_tag
from dash_exp.rewards.base import Reward
from dash_exp.sampling.base import Sampling

ENDING = 16  # tokens of a prompt in which a tag at its end is looked for


class TraceSampler:
    """Returns the solution of each problem, tokenised and with the end-of-sequence token, `group_size` times.

    `reward` is ignored: solutions are returned whether they are correct or not. Other samplers of traces use it. `separator`:
    see `texts.behind`.
    """

    version = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reward: Reward | None = None, separator: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.separator = separator or ""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for the first problem that has no solution."""
        for problem in problems:
            if not problem.solution:
                raise UserError(
                    f"problem {problem.id}",
                    "has no solution to train on",
                    "SFT needs a data set with solutions; data=jsonl takes them from the field that data.solution names",
                )

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Nothing to do: traces do not depend on weights."""

    def rest(self) -> None:
        """Nothing to release."""

    def close(self) -> None:
        """Nothing to close."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        return [self._trace(prompt, sampling.max_tokens) for prompt in prompts for _ in range(group_size)]

    def _trace(self, prompt: Prompt, max_tokens: int) -> Completion:
        self.check([prompt.problem])
        solution = continued(prompt, str(prompt.problem.solution), self.separator, self.tokenizer)
        ids = continuation(self.tokenizer, solution, end=prompt.end)
        return Completion(np.array(ids[:max_tokens]), None, truncated=len(ids) > max_tokens)


def continued(prompt: Prompt, solution: str, separator: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a solution adds to a prompt: all of it, behind the separator where there is one; or its rest, where it begins with
    what the prompt ends with: the prefill, or a tag such as `<think>` that a chat template has opened.
    """
    written, prefill = solution.lstrip(), prompt.prefill.lstrip()
    if prefill and written.startswith(prefill):
        return written.removeprefix(prefill)
    ending = str(tokenizer.decode(list(prompt.ids[-ENDING:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if (rest := without_tag(written, ending)) is not None:
        return rest
    return behind(prompt.problem.prompt if prompt.lead is None else prompt.lead, solution, separator)
