"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

from dash_exp.core.words import duration
from dash_exp.training.module import PolicyModule


class Progress(L.Callback):
    """Reward, accuracy, kept fraction, tokens per second and time left, after every outer step.

    Without a terminal: a line for the first step, the last, and one every `line_every_s` seconds in between.
    """

    def __init__(self, steps: int, line_every_s: float = 10.0) -> None:
        self.steps = steps
        self.line_every_s = line_every_s
        self.bar: tqdm | None = None
        self._start = self._last_line = self._elapsed_s = 0.0
        self._first = 0  # outer steps that were done before

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._first = time.perf_counter(), trainer.current_epoch
        self._last_line = float("-inf")
        assert isinstance(pl_module, PolicyModule)
        self._elapsed_s = pl_module.clock.training_s
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.steps, initial=self._first, unit="step", dynamic_ncols=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        row = pl_module.row
        step = int(row["step"] or 0)
        says = describe(row, pl_module.accuracy, float(row["time/elapsed_s"] or 0) - self._elapsed_s)
        self._elapsed_s = float(row["time/elapsed_s"] or 0)
        if self.bar is not None:
            self.bar.set_postfix_str(says, refresh=False)
            self.bar.update()
            return
        now = time.perf_counter()
        if now - self._last_line >= self.line_every_s or step == self.steps:
            left_s = (now - self._start) / (step - self._first) * (self.steps - step)
            print(f"step {step}/{self.steps}  {says}  left {duration(left_s)}", flush=True)
            self._last_line = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


def describe(row: dict[str, Any], accuracy: dict[str, float], seconds: float) -> str:
    """One step of so many seconds, evaluation excluded, in a line; tokens per second are the sampled ones."""
    accuracies = "/".join(f"{100 * value:.0f}%" for value in accuracy.values())
    return (
        f"reward {row['reward/mean']:.3f}  accuracy {accuracies}  kept {100 * row['filter/kept_fraction']:.0f}%  "
        f"{row['tokens/sampled'] / max(seconds, 1e-9):,.0f} tok/s"
    )
