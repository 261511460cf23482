"""An optimizer for weights in 16 bits that keeps them in 32 as well.

A bfloat16 number has 8 significant bits: a step below 1/512 of a weight is rounded away, and the next one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Make = Callable[[Sequence[Tensor]], Optimizer]


class MasterWeights(Optimizer):
    """The optimizer that `make` gives for copies of the parameters in float32, which are rounded into them after each step.

    Gradients are summed in 32 bits too: a backward pass adds to those of the copies, and leaves none on the parameters. The
    parameters of `param_groups`, to be clipped for instance, are the copies. What is in 32 bits already has no copy.
    """

    def __init__(self, parameters: Sequence[Tensor], make: Make) -> None:
        self.pairs = [(p, p.detach().float().requires_grad_()) for p in parameters if p.dtype != torch.float32]
        copies = dict(self.pairs)
        self.inner = make([copies.get(p, p) for p in parameters])
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()
        for parameter, copy in self.pairs:
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, copy=copy))

    def step(self, closure: Any = None) -> Any:
        result = self.inner.step(closure)
        self._publish()
        return result

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict() | {"masters": [copy.detach() for _, copy in self.pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rest = dict(state_dict)
        for (_, copy), saved in zip(self.pairs, rest.pop("masters"), strict=True):
            copy.data.copy_(saved)
        self.inner.load_state_dict(rest)
        self._share()
        self._publish()

    def _share(self) -> None:
        """Schedules change the learning rate in the groups of this optimizer, which are those of the one inside."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @torch.no_grad()
    def _publish(self) -> None:
        for parameter, copy in self.pairs:
            parameter.copy_(copy)


def _hand_over(parameter: Tensor, copy: Tensor) -> None:
    assert parameter.grad is not None
    gradient, parameter.grad = parameter.grad, None
    copy.grad = gradient.float() if copy.grad is None else copy.grad.add_(gradient)


def with_master_weights(make: Make) -> Make:
    """`make`, with `MasterWeights` around its optimizer where a parameter is not in 32 bits."""

    def made(parameters: Sequence[Tensor]) -> Optimizer:
        if all(p.dtype == torch.float32 for p in parameters):
            return make(parameters)
        return MasterWeights(parameters, make)

    return made
