"""Not a sampler of the policy: it hands out the solutions that the data set carries, so that SFT takes the same path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.rewards.base import Reward
from dash_exp.sampling.base import Sampling


class TraceSampler:
    """The solution of each problem, tokenised and closed by the end-of-sequence token, as a group of `group_size`.

    `reward` is what every sampler of written traces is given; this one hands out solutions whether they are right or not.
    """

    version = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reward: Reward | None = None) -> None:
        self.tokenizer = tokenizer

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Written traces have no weights."""

    def rest(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing to end."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        return [self._trace(prompt, sampling.max_tokens) for prompt in prompts for _ in range(group_size)]

    def _trace(self, prompt: Prompt, max_tokens: int) -> Completion:
        solution = prompt.problem.solution
        if not solution:
            raise UserError(f"problem {prompt.problem.id}", "has no solution to learn from", "SFT needs data with solutions")
        ids = (*self.tokenizer(solution, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id)
        return Completion(ids[:max_tokens], None, truncated=len(ids) > max_tokens)
