"""Lightning's strategies for several ranks: its devices, environments and FSDP2, and what is done here in another way.

Gradients are added up after the last micro-batch of an optimizer step (`Ranks.add_up`), not inside backward passes, as
DistributedDataParallel does it: that waits for ever where a rank has fewer micro-batches than another, or none, as after
filtering, and averages over ranks, whose shares have unequal sizes.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from dash_exp.distributed import world


class _Quiet:
    """Lightning has the ranks wait for each other in each epoch, inside gloo, where no signal and no lost rank ends it.

    They have the same numbers, and wait for each other where they exchange something (`Ranks`): more is not needed.
    """

    def barrier(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def broadcast(self, obj: Any, *_: Any, **__: Any) -> Any:
        """This rank's own."""
        return obj

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        """This rank's own."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """This rank's own."""
        return decision


class Ranked(_Quiet, DDPStrategy):
    """DDPStrategy without its wrapper."""

    def configure_ddp(self) -> None:
        """No DistributedDataParallel."""


class Sharded(_Quiet, ModelParallelStrategy):
    """Each rank keeps its part of the weights, as the module's `configure_model` divides them."""


def arguments(ranks: int, sharded: bool) -> dict[str, Any]:
    """Of the Trainer of a run on so many ranks."""
    given: dict[str, Any] = {"use_distributed_sampler": False, "plugins": [world.environment()]}
    if ranks == 1:
        return given | {"strategy": "auto"}
    strategy = Sharded(data_parallel_size=ranks, tensor_parallel_size=1) if sharded else Ranked()
    return given | {"strategy": strategy, "inference_mode": False}  # which breaks weights that FSDP gathers in it


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep the handler of SIGTERM that is there, for several ranks.

    Lightning's broadcasts, from whatever code the signal interrupts (Lightning #20806), and asks all ranks for it before each
    batch, inside gloo.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
