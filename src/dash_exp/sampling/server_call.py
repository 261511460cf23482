"""One call of `sample` on several servers: which requests are left, and what came back. Every request is answered once."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dash_exp.core.types import Completion, Prompt
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import completion, group_seed, sampling_parameters
from dash_exp.sampling.server_link import AnswerError, LostError

LEAST_LOGPROB = -9999.0  # what vLLM says for minus infinity, and for what is no number
TRIES = 3  # of a request that servers do not answer as they should


@dataclass(frozen=True)
class Part:
    """`count` completions of a prompt, from place `start` of its group. A whole group, if a server can decode it at a time."""

    prompt: int
    start: int
    count: int


class Call:
    """The requests of one call of `sample`, and the completions so far. `most`: completions that one request may ask for."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        key: tuple[int, ...],
        eos_ids: frozenset[int],
        most: int,
    ) -> None:
        self.prompts = prompts
        self.sampling = sampling
        self.eos_ids = eos_ids
        self.seeds = [group_seed(key, p, sampling.start) for p in prompts]
        self.parts = [
            Part(i, start, min(most, group_size - start)) for i in range(len(prompts)) for start in range(0, group_size, most)
        ]
        self.todo = deque(self.parts)
        self.found: dict[Part, list[Completion]] = {}
        self.active: set[str] = set()  # servers that answered a request
        self.taken: dict[Part, str] = {}  # the server that had a part last
        self.failed: Counter[Part] = Counter()  # how often the answer could not be used
        self.resent = 0  # how many were given to another server because theirs did not answer them
        self.said = 0  # how often the missing server was reported
        self.started = self.finished = time.monotonic()  # `finished`: when a request was last answered

    @property
    def done(self) -> bool:
        return len(self.found) == len(self.parts)

    def take(self, url: str) -> Part:
        """The next part, for a server."""
        part = self.todo.popleft()
        self.resent += self.taken.get(part, url) != url
        self.taken[part] = url
        return part

    def give_back(self, part: Part) -> None:
        """A part that a server did not finish. It has waited longest; but one that has failed waits for all others."""
        if self.failed[part]:
            self.todo.append(part)
        else:
            self.todo.appendleft(part)

    def request(self, part: Part, model: str) -> dict[str, Any]:
        """The body of a request. The noise of a completion depends on its prompt and place only, not on how groups are cut."""
        seed = self.seeds[part.prompt] + part.start
        parameters = sampling_parameters(part.count, self.sampling, seed, self.eos_ids)
        return {"model": model, "token_ids": list(self.prompts[part.prompt].ids), "sampling_params": parameters}

    def finish(self, part: Part, answer: Any, model: str, label: str, url: str) -> None:
        """Take the answer to a request. Takes nothing of one with completions from other weights (LostError), or that is not
        what was asked for (AnswerError).
        """
        try:
            if answer["model"] != model:
                raise LostError(f"it sampled with {answer['model']}")
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            if [choice["index"] for choice in choices] != list(range(part.count)):
                raise AnswerError(f"it sent {len(choices)} completions of a prompt instead of {part.count}")
            found = [self._completion(choice, label) for choice in choices]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise AnswerError(f"its answer cannot be read ({type(error).__name__} {error})") from error
        self.found[part] = found
        self.active.add(url)
        self.finished = time.monotonic()

    def completions(self) -> list[Completion]:
        """All completions, in group-major order."""
        return [completion for part in self.parts for completion in self.found[part]]

    def _completion(self, choice: Mapping[str, Any], label: str) -> Completion:
        ids = choice["token_ids"]
        spans = [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]
        if spans != [(label, 0, len(ids))]:
            raise LostError(f"it sampled with other weights ({', '.join(str(version) for version, _, _ in spans)})")
        if choice["finish_reason"] not in ("stop", "length"):  # someone else paused the server: it is not a shorter completion
            raise AnswerError(f"a completion ended with {choice['finish_reason']}")
        logprobs: Any = None
        if self.sampling.top_p == 1:
            tokens = choice["logprobs"]["content"]
            if [token["token_id"] for token in tokens] != ids:
                raise AnswerError("its log-probabilities are not those of its tokens")
            logprobs = [token["logprob"] for token in tokens]
            if not min(logprobs) > LEAST_LOGPROB:
                raise AnswerError("a token has no log-probability: the weights give numbers that are infinite or none")
        found = completion(ids, logprobs, choice["stop_reason"], self.eos_ids)
        if found.truncated and choice["finish_reason"] == "stop":
            raise AnswerError(f"a completion ended with token {ids[-1]}, which ends none here: its tokenizer is another")
        return found
