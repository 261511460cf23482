"""SFT on the solutions in the data set: a sampler that returns these solutions instead of sampling from the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models.texts import behind, continuation, without_tag
from dash_exp.rewards.base import Reward, correct
from dash_exp.sampling.base import Sampling

ENDING = 16  # tokens of a prompt in which a tag at its end is looked for
TRIED = 16  # solutions that are graded behind what their prompts have begun


class TraceSampler:
    """Returns the solution of each problem, tokenised and with the end-of-sequence token, `group_size` times.

    Solutions are returned whether they are correct or not; `reward` is for `check_prompts` alone. `separator`: see
    `texts.behind`.
    """

    version = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reward: Reward | None = None, separator: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.reward = reward
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

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError where the solutions are right, but not behind what their prompts have begun (see `check_begun`)."""
        some = [prompt for prompt in prompts if prompt.prefill][:TRIED]
        if self.reward is not None:
            check_begun(self.reward, some, [str(p.problem.solution) for p in some], [self._added(p) for p in some])

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
        ids = continuation(self.tokenizer, self._added(prompt), end=prompt.end)
        return Completion(np.array(ids[:max_tokens]), None, truncated=len(ids) > max_tokens)

    def _added(self, prompt: Prompt) -> str:
        return continued(prompt, str(prompt.problem.solution), self.separator, self.tokenizer)


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


def check_begun(reward: Reward, prompts: Sequence[Prompt], traces: Sequence[str], added: Sequence[str]) -> None:
    """Raise UserError where some of the traces are right by themselves, but none behind the prefill of its prompt, as `added`:
    a policy that learns them would always be graded 0. So it is with a prompt that begins a thought, and traces without one.
    """
    problems = [prompt.problem for prompt in prompts]
    if not problems or not any(correct(reward(problems, traces), reward)):
        return
    if not any(correct(reward(problems, [p.prefill + text for p, text in zip(prompts, added, strict=True)]), reward)):
        wrong = f"its prompt begins the answer with {prompts[0].prefill!r}, behind which the reward grades right solutions 0"
        right = (
            "Give solutions that go on from there, as with </think>, or use a prompt that begins no answer, such as prompt=bare"
        )
        raise UserError(f"problem {problems[0].id}", wrong, right)
