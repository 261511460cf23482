"""SFT on the solutions in the data set: a sampler that returns these solutions instead of sampling from the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.rewards.base import Reward
from dash_exp.sampling.base import Sampling


class TraceSampler:
    """Returns the solution of each problem, tokenised and with the end-of-sequence token, `group_size` times.

    `reward` is ignored: solutions are returned whether they are correct or not. Other samplers of traces use it.
    """

    version = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reward: Reward | None = None) -> None:
        self.tokenizer = tokenizer

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Nothing to do: traces do not depend on weights."""

    def rest(self) -> None:
        """Nothing to release."""

    def close(self) -> None:
        """Nothing to close."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        return [self._trace(prompt, sampling.max_tokens) for prompt in prompts for _ in range(group_size)]

    def _trace(self, prompt: Prompt, max_tokens: int) -> Completion:
        solution = prompt.problem.solution
        if not solution:
            raise UserError(
                f"problem {prompt.problem.id}", "has no solution to train on", "SFT needs a data set with solutions"
            )
        ids = (*self.tokenizer(solution, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id)
        return Completion(ids[:max_tokens], None, truncated=len(ids) > max_tokens)
