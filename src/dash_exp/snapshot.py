"""What a run needs to go on from its last outer steps after it was killed: written while it trains, removed when it is done.

The sampling noise and the order of the problems are functions of seed and outer step, so there is no random state to keep.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dash_exp.module import PolicyModule
from dash_exp.record import RunRecord
from dash_exp.results import ATTEMPTS_FILE
from dash_exp.rollout import RolloutDataModule

log = logging.getLogger(__name__)

State = Mapping[str, Any]


class Snapshots(L.Callback):
    """Writes `checkpoints/resume.pt` every `every` outer steps, and puts a run back to where such a file was written.

    `config` is the text of the resolved configuration: a snapshot of another one is not gone on from. `more()` gives what else
    is to be kept, and comes back in the state under "more". Weights older than the policy's are not kept: with
    `rollout.staleness` or `rollout.refresh_every` a run begins anew.
    """

    def __init__(
        self, run_dir: Path, every: int | None, config: str, data: RolloutDataModule, more: Callable[[], dict[str, Any]]
    ) -> None:
        self.file = run_dir / "checkpoints" / "resume.pt"
        self.every = every if data.refresh.on_policy else None
        self.config = config
        self.data = data
        self.more = more
        self.state: State | None = self._read() if self.every else None

    @property
    def step(self) -> int:
        """The outer steps that the snapshot found at the start had behind it; 0 without one."""
        return self.state["step"] if self.state else 0

    @property
    def rows(self) -> list[dict[str, float | int | None]]:
        """The rows of metrics up to there."""
        return self.state["rows"] if self.state else []

    def put_back(self, trainer: L.Trainer, module: PolicyModule, record: RunRecord) -> None:
        """Everything but the optimizer, which there is when training starts."""
        assert self.state is not None
        trainer.fit_loop.epoch_progress.current.processed = self.step  # type: ignore[attr-defined]
        module.policy.load_state_dict(self.state["policy"])
        for name, value in self.state["module"].items():
            setattr(module, name, value)
        vars(module.kl_coef).update(self.state["kl"])
        module.clock.restore(self.state["clock"])
        self.data.refresh.restore(self.state["versions"])
        self.data.eval_timeouts, self.data.eval_errors = self.state["eval"]
        record.best = self.state["best"]
        for row in self.rows:  # the tracker begins anew, and knows by itself which rows it sent before
            record.track(trainer, row)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is not None:
            trainer.optimizers[0].load_state_dict(self.state["optimizer"])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.state["schedule"])
            self.state = None  # its memory

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the record has written its row. Nothing is kept of the last step: the run ends with it."""
        assert isinstance(pl_module, PolicyModule)
        step = trainer.current_epoch + 1
        if self.every is None or step % self.every or step == trainer.max_epochs or trainer.should_stop:
            return
        record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
        names = ("policy_version", "accuracy", "accuracy_version", "evaluation", "right", "_warned_at")
        state = {
            "config": self.config,
            "step": step,
            "policy": pl_module.policy.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "module": {name: getattr(pl_module, name) for name in names},
            "kl": dict(vars(pl_module.kl_coef)),
            "clock": pl_module.clock.state(),
            "versions": self.data.refresh.versions,
            "eval": (self.data.eval_timeouts, self.data.eval_errors),
            "rows": record.rows,
            "best": record.best,
            "more": self.more(),
        }
        with pl_module.clock.apart():
            self.file.parent.mkdir(exist_ok=True)
            new = self.file.with_suffix(".new")
            torch.save(state, new)
            os.replace(new, self.file)
        (self.file.parents[1] / ATTEMPTS_FILE).unlink(missing_ok=True)  # it got further

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)

    def _read(self) -> State | None:
        if not self.file.is_file():
            return None
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds, and each means the same
            log.warning("%s cannot be read (%s): the run begins anew", self.file, str(error).splitlines()[0][:200])
            return None
        return state if state["config"] == self.config else None
