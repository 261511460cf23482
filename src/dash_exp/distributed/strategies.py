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


class Ranked(DDPStrategy):
    """DDPStrategy without its wrapper."""

    def configure_ddp(self) -> None:
        """No DistributedDataParallel."""


def strategy(ranks: int, sharded: bool) -> Strategy | str:
    """With `sharded` each rank keeps its part of the weights, as the module's `configure_model` divides them."""
    if ranks == 1:
        return "auto"
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1) if sharded else Ranked()


class OwnSigterm(L.Callback):
    """Puts the handler of SIGTERM back that was there when this object was made, and that Lightning has wrapped in its own.

    With several ranks Lightning's broadcasts, from whatever code the signal interrupts (Lightning #20806).
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    on_validation_start = on_train_start
