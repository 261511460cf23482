"""Lightning's strategies for several ranks: its devices, environments and FSDP2, and what is done here in another way.

Gradients are added up after the last micro-batch of an optimizer step (`Ranks.add_up`), not inside backward passes, as
DistributedDataParallel does it: that waits for ever where a rank has fewer micro-batches than another, or none, as after
filtering, and averages over ranks, whose shares have unequal sizes.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy


class _Quiet:
    """Lightning has the ranks wait for each other in each epoch, inside gloo, where no signal and no lost rank ends it.

    They have the same numbers, and wait for each other where they exchange something (`Ranks`): more is not needed.
    """

    def barrier(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        """This rank's own value."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """This rank's own decision."""
        return decision


class Ranked(_Quiet, DDPStrategy):
    """DDPStrategy without its wrapper."""

    def configure_ddp(self) -> None:
        """No DistributedDataParallel."""


class Sharded(_Quiet, ModelParallelStrategy):
    """Each rank keeps its part of the weights, as the module's `configure_model` divides them."""


def strategy(ranks: int, sharded: bool) -> Strategy | str:
    """Of a run on so many ranks."""
    if ranks == 1:
        return "auto"
    return Sharded(data_parallel_size=ranks, tensor_parallel_size=1) if sharded else Ranked()


class OwnSigterm(L.Callback):
    """Puts the handler of SIGTERM back that was there when this object was made, and that Lightning has wrapped in its own.

    With several ranks Lightning's broadcasts, from whatever code the signal interrupts (Lightning #20806), and asks all ranks
    for it before each batch, inside gloo.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.on_validation_start(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)
