"""One call of `sample` on several servers: which requests are left, and what came back. Every request is answered once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dash_exp.core.types import Completion, Prompt
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import group_seed, sampling_parameters
from dash_exp.sampling.server_link import LostError


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
        self.given_back: dict[Part, str] = {}  # part -> server that lost it
        self.resent = 0  # how many were given to another server because theirs was lost
        self.said = 0  # how often the missing server was reported
        self.started = self.heard = time.monotonic()  # `heard`: when a server last made progress

    @property
    def done(self) -> bool:
        return len(self.found) == len(self.parts)

    def take(self, url: str) -> Part:
        """The next part, for a server."""
        part = self.todo.popleft()
        self.resent += self.given_back.pop(part, url) != url
        return part

    def give_back(self, part: Part, url: str) -> None:
        """A part that a server did not finish. It goes to the front, because it has waited longest."""
        self.todo.appendleft(part)
        self.given_back[part] = url

    def request(self, part: Part, model: str) -> dict[str, Any]:
        """The body of a request. The noise of a completion depends on its prompt and place only, not on how groups are cut."""
        seed = self.seeds[part.prompt] + part.start
        parameters = sampling_parameters(part.count, self.sampling, seed, self.eos_ids)
        return {"model": model, "token_ids": list(self.prompts[part.prompt].ids), "sampling_params": parameters}

    def finish(self, part: Part, answer: Any, model: str, label: str, url: str) -> None:
        """Take the answer to a request. Raises LostError, and takes nothing, unless all of it is from these weights."""
        try:
            if answer["model"] != model:
                raise LostError(f"it sampled with {answer['model']}")
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            if [choice["index"] for choice in choices] != list(range(part.count)):
                raise LostError(f"it sent {len(choices)} completions of a prompt instead of {part.count}")
            found = [self._completion(choice, label) for choice in choices]
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise LostError(f"its answer cannot be read ({type(error).__name__} {error})") from error
        self.found[part] = found
        self.active.add(url)
        self.heard = time.monotonic()

    def completions(self) -> list[Completion]:
        """All completions, in group-major order."""
        return [completion for part in self.parts for completion in self.found[part]]

    def _completion(self, choice: Mapping[str, Any], label: str) -> Completion:
        ids = choice["token_ids"]
        if choice["finish_reason"] not in ("stop", "length"):  # someone else paused the server: it is not a shorter completion
            raise LostError(f"a completion ended with {choice['finish_reason']}")
        spans = [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]
        if spans != [(label, 0, len(ids))]:
            raise LostError(f"it sampled with other weights ({', '.join(version for version, _, _ in spans)})")
        ended = ids[-1] in self.eos_ids
        stopped = not ended and isinstance(choice["stop_reason"], str)  # the stop string
        if choice["finish_reason"] == "stop" and not (ended or stopped):
            raise LostError(f"a completion ended with token {ids[-1]}, which ends none here: its tokenizer is another")
        logprobs: Any = None
        if self.sampling.top_p == 1:
            tokens = choice["logprobs"]["content"]
            if [token["token_id"] for token in tokens] != ids:
                raise LostError("its log-probabilities are not those of its tokens")
            logprobs = [token["logprob"] for token in tokens]
        return Completion(ids, logprobs, not (ended or stopped), stopped)
