"""Master weights: an optimizer for weights in 16 bits that also keeps 32-bit copies of them.

A bfloat16 number has 8 significant bits: a step smaller than 1/512 of a weight is lost in rounding, and so is every later one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Build = Callable[[Sequence[Tensor]], Optimizer]


class MasterWeights(Optimizer):
    """The optimizer that `build` gives, on float32 copies of the parameters; each step is rounded into the parameters.

    Gradients are summed in 32 bits too: a backward pass adds to the gradients of the copies, and leaves none on the parameters.
    `param_groups` has the copies: clip their gradients. Parameters that are in 32 bits already have no copy.
    """

    def __init__(self, parameters: Sequence[Tensor], build: Build) -> None:
        self.pairs = [(p, p.detach().float().requires_grad_()) for p in parameters if p.dtype != torch.float32]
        copies = dict(self.pairs)
        self.inner = build([copies.get(p, p) for p in parameters])
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()
        for parameter, copy in self.pairs:
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, copy=copy))

    def step(self, closure: Any = None) -> Any:
        """A step of the inner optimizer, rounded into the parameters."""
        result = self.inner.step(closure)
        self._publish()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, and the copies as `masters`."""
        return self.inner.state_dict() | {"masters": [copy.detach() for _, copy in self.pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the parameters get the rounded copies."""
        rest = dict(state_dict)
        for (_, copy), saved in zip(self.pairs, rest.pop("masters"), strict=True):
            copy.data.copy_(saved)
        self.inner.load_state_dict(rest)
        self._share()
        self._publish()

    def _share(self) -> None:
        """Use the groups and state of the inner optimizer: schedules change the learning rate in the groups of this one."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @torch.no_grad()
    def _publish(self) -> None:
        for parameter, copy in self.pairs:
            parameter.copy_(copy)


def _hand_over(parameter: Tensor, copy: Tensor) -> None:
    assert parameter.grad is not None
    gradient, parameter.grad = parameter.grad, None
    copy.grad = gradient.float() if copy.grad is None else copy.grad.add_(gradient)


def with_master_weights(build: Build) -> Build:
    """`build`, but with `MasterWeights` around its optimizer if any parameter is not in 32 bits."""

    def built(parameters: Sequence[Tensor]) -> Optimizer:
        if all(p.dtype == torch.float32 for p in parameters):
            return build(parameters)
        return MasterWeights(parameters, build)

    return built
