"""Which weights each outer step is sampled with, and when the sampler gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.models.adapter import trained
from dash_exp.sampling.base import Sampler


class Refresh:
    """Outer step s (from 0) is sampled with the policy after `due(s)` outer steps.

    `staleness` 0 and `every` 1 is on-policy: due(s) = s. With `staleness` k the weights are k outer steps old. With `every` n
    they change only every n outer steps; with `every` None they never change. Evaluation always uses the newest weights. Stale
    weights are copied to CPU memory, but only if they are needed. `weights`, if given, returns the weights of the policy at
    the time of `publish` (see `sharded.whole`), and every version that is needed is kept, the newest for evaluation.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        sampler: Sampler,
        staleness: int = 0,
        every: int | None = 1,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.policy = policy
        self.weights = weights
        self.sampler = sampler
        self.staleness = staleness
        self.every = every
        self._copies: dict[int, Mapping[str, Tensor]] = {}
        self._versions: list[int] = []  # the policy version after each outer step
        self.publish(0)

    @property
    def on_policy(self) -> bool:
        return self.staleness == 0 and self.every == 1

    @property
    def versions(self) -> list[int]:
        """The policy version after each outer step so far, the base model's first."""
        return list(self._versions)

    @property
    def copies(self) -> dict[int, Mapping[str, Tensor]]:
        """The stale weights that are still needed, by the number of outer steps they had. They do not change later."""
        return dict(self._copies)

    @property
    def older(self) -> dict[int, Mapping[str, Tensor]]:
        """`copies` without those of the policy as it is now, which `restore` makes again."""
        return {step: weights for step, weights in self._copies.items() if step != len(self._versions) - 1}

    def restore(self, versions: Sequence[int], older: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Resume with these `versions` and `older` weights, and the policy as it is now."""
        self._versions = list(versions)
        self._copies = dict(older)
        self._keep(len(versions) - 1)

    def due(self, step: int) -> int:
        """The number of outer steps behind the weights that `step` is sampled with."""
        if self.every is None:
            return 0
        return max(0, step - self.staleness) // self.every * self.every

    def version(self, step: int) -> int:
        """The policy version that `step` is sampled with."""
        return self._versions[self.due(step)]

    def publish(self, version: int) -> None:
        """Call this after every outer step, before the policy changes again. `version` is the policy version now."""
        step = len(self._versions)
        self._versions.append(version)
        self._keep(step)
        self._copies = {s: w for s, w in self._copies.items() if s == step or (s >= self.due(step) and self._sampled_with(s))}

    def _keep(self, step: int) -> None:
        """Copy the policy as it is after `step` outer steps, where a copy is needed."""
        if self.weights is not None:
            self._copies[step] = self.weights()
        elif not self.on_policy and self._sampled_with(step):
            self._copies[step] = copied(trained(self.policy))

    def _sampled_with(self, step: int) -> bool:
        """Whether an outer step is sampled with the policy after `step` outer steps."""
        return step == 0 or (self.every is not None and step % self.every == 0)

    def bring(self, step: int) -> None:
        """Give the sampler the weights for `step`, if it has other weights."""
        if self.sampler.version != self.version(step):
            due = self.due(step)
            newest = due == len(self._versions) - 1 and due not in self._copies  # a copy does not change with the policy
            weights = trained(self.policy) if newest else self._copies[due]
            self.sampler.load_weights(weights, self._versions[due])

    def bring_newest(self) -> None:
        """Give the sampler the newest weights, if it has other weights."""
        if self.sampler.version != self._versions[-1]:
            weights = trained(self.policy) if self.weights is None else self._copies[len(self._versions) - 1]
            self.sampler.load_weights(weights, self._versions[-1])


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in CPU memory. Tensors that share memory (tied embeddings) also share it in the copy."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}  # by place in memory; those without numbers are all at 0
    with torch.no_grad():
        for tensor in weights.values():
            if (tensor.data_ptr(), tensor.shape) not in copies:
                copies[tensor.data_ptr(), tensor.shape] = tensor.detach().to("cpu", copy=True)
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}
