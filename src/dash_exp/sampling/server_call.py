"""One call of `sample` on several servers: which groups are left, which server has which, and what came back."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from dash_exp.core.types import Completion, Prompt
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import group_seed
from dash_exp.sampling.server_link import LostError, in_one_line


class Call:
    """The prompts of one call of `sample`, and the groups finished so far. Guarded by the lock of the sampler."""

    def __init__(
        self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...], version: int
    ) -> None:
        self.version = version
        self.prompts = [{"ids": list(p.ids), "seed": group_seed(key, p, sampling.start)} for p in prompts]
        self.group_size = group_size
        self.sampling = sampling
        self.todo = deque(range(len(prompts)))
        self.groups: dict[int, list[Completion]] = {}
        self.active: set[str] = set()  # servers that finished a group
        self.given_back: dict[int, str] = {}  # prompt -> server that lost it
        self.said = 0  # how often the missing server was reported
        self.started = self.heard = time.monotonic()  # `heard`: when a server last made progress

    @property
    def done(self) -> bool:
        return len(self.groups) == len(self.prompts)

    def take(self, most: int, url: str) -> tuple[list[int], int]:
        """Up to `most` prompts for a server, and how many of them another server had before."""
        share = [self.todo.popleft() for _ in range(min(most, len(self.todo)))]
        return share, sum(self.given_back.pop(i, url) != url for i in share)

    def give_back(self, left: set[int], url: str) -> None:
        """Prompts that a server did not finish. They go to the front, because they have waited longest."""
        self.todo.extendleft(sorted(left, reverse=True))
        self.given_back.update(dict.fromkeys(left, url))

    def request(self, share: Sequence[int], load: str | None) -> dict[str, Any]:
        """The body of a /sample request for these prompts."""
        return {
            "version": self.version,
            "load": load,
            "prompts": [{"index": i, **self.prompts[i]} for i in share],
            "group_size": self.group_size,
            "max_tokens": self.sampling.max_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "stop": self.sampling.stop,
        }

    def parsed(self, text: str, eos_ids: frozenset[int]) -> dict[str, Any]:
        """One line of a server's answer, with the completions of a finished group, if there is one, under "completions".

        Raises LostError if the line is an error, cannot be read, or is from other weights.
        """
        try:
            line = json.loads(text)
            if "error" in line:
                raise LostError(str(line["error"]))
            if "index" in line:
                if line["version"] != self.version:
                    raise LostError(f"it sampled with version {line['version']} instead of {self.version}")
                line["completions"] = [completion(c, eos_ids) for c in line["completions"]]
                if (n := len(line["completions"])) != self.group_size:
                    raise LostError(f"it sent {n} completions of a prompt instead of {self.group_size}")
            return line
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise LostError(f"it sent a line that cannot be read: {in_one_line(text)[:80]}") from error


def completion(sent: Mapping[str, Any], eos_ids: frozenset[int]) -> Completion:
    """A completion from the JSON that a server sends."""
    ids = sent["ids"]
    stopped = bool(sent.get("stopped", False))
    truncated = not stopped and ids[-1] not in eos_ids
    return Completion(ids, sent["logprobs"], truncated, stopped)
