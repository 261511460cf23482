"""Sampling with vLLM in the training process. The engine has its own copy of the weights, which is updated from the policy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.models.loading import eos_ids
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.engine import Engine


class VLLMSampler:
    """A sampler with an engine in this process. `settings`: see `Engine`. Weights and computation are in `compute_dtype`.

    If the policy has an adapter, the engine gets the base weights once and the adapter at each update. With `merge` it gets all
    weights at each update, with the adapter merged into them.
    """

    continuous_batching = True

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        compute_dtype: torch.dtype = torch.float32,
        *,
        merge: bool = False,
        **settings: Any,
    ) -> None:
        self.policy = policy
        self.adapter = None if merge else adapter.described(policy)
        rank = None if self.adapter is None else int(self.adapter["r"])
        ends = eos_ids(policy, tokenizer)
        self.engine = Engine(policy.config, ends, compute_dtype, lora_rank=rank, tokenizer=tokenizer, **settings)
        if self.adapter is not None:
            self.engine.load(adapter.base(policy))
        self.engine.warm_up()
        self.version: int | None = None
        self._busy = threading.Lock()
        self._closed = False

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        assert self.version is not None, "the engine has no weights yet"
        with self._engine_alone():
            return self.engine.generate(prompts, group_size, sampling, key)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.version = None  # an interrupted load leaves no valid version
        with self._engine_alone():
            if self.adapter is not None:
                self.engine.load_adapter(self.adapter, weights)
            else:
                self.engine.load(adapter.whole(self.policy, weights))
        self.version = version

    def rest(self) -> None:
        """See `Sampler.rest`. Asleep it has no version: whoever samples next loads weights, which wakes it."""
        with self._engine_alone():
            self.engine.rest()
            if self.engine.asleep:
                self.version = None

    def close(self) -> None:
        """Close the engine. Waits for a sampling call in another thread, which cannot be interrupted."""
        with self._busy:
            if not self._closed:
                self._closed = True
                self.engine.close()

    @contextmanager
    def _engine_alone(self) -> Iterator[None]:
        with self._busy:
            if self._closed:
                raise RuntimeError("the engine was closed")
            yield
