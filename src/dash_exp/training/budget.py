"""Stops a run when it has used up what it was given, so that arms can be compared at equal cost."""

from __future__ import annotations

from typing import Any

import lightning as L

from dash_exp.core.metrics import Clock
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.training.module import PolicyModule

LIMITS = ("seconds", "sampled_tokens", "optimizer_steps")


class Budget(L.Callback):
    """Ends training after the first outer step at whose end a limit is reached, and has that step evaluated.

    `seconds` are those of training, evaluation excluded (`time/elapsed_s`); `sampled_tokens` and `optimizer_steps` count from
    the start of the run, `already_sampled_tokens` of them before this process. None is no limit. `reached` names the limit
    that ended the run; None where it took all its steps.
    """

    def __init__(
        self,
        clock: Clock,
        seconds: float | None = None,
        sampled_tokens: int | None = None,
        optimizer_steps: int | None = None,
        already_sampled_tokens: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.clock = clock
        self.limits = {"seconds": seconds, "sampled_tokens": sampled_tokens, "optimizer_steps": optimizer_steps}
        self.reached: str | None = None
        self.ranks = ranks
        self._sampled_tokens = already_sampled_tokens

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if not trainer.is_last_batch:
            return
        self._sampled_tokens += sum(len(c.ids) for r in pl_module.rollouts_of_step for c in r.completions)
        used = {
            "seconds": self.clock.training_s,
            "sampled_tokens": self._sampled_tokens,
            "optimizer_steps": pl_module.policy_version,
        }
        reached = [name for name, limit in self.limits.items() if limit is not None and used[name] >= limit]
        self.reached = self.ranks.from_first(reached[0] if reached else None)  # each has a clock of its own
        if self.reached is not None:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # the last step is always evaluated
