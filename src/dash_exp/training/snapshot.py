"""What a run needs to resume from its last outer steps after it was killed: written while it trains, removed at its end.

The sampling noise and the order of the problems are functions of seed and outer step, so a place in the data is a number. Other
noise, such as an adapter's dropout, comes from global generators, whose states are kept for each rank.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
import torch

from dash_exp.core import files
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.models import adapter, sharded
from dash_exp.results.problems import differ
from dash_exp.results.run_folder import ATTEMPTS_FILE, SNAPSHOTS, snapshots
from dash_exp.settings import renamed
from dash_exp.training.module import PolicyModule
from dash_exp.training.record import RunRecord
from dash_exp.training.rollout import RolloutDataModule

log = logging.getLogger(__name__)

State = Mapping[str, Any]

KEPT = 2  # snapshots: the last one, and the one before it in case the last one is damaged
# Of the module, in addition to its weights.
MODULE = ("policy_version", "accuracy", "accuracy_version", "evaluation", "right", "micro_tokens", "nonfinite_in_a_row")


class Snapshots(L.Callback):
    """Writes a snapshot `checkpoints/resume/step_*.pt` every `every` outer steps, and restores a run from such a file.

    When a run is stopped in a way that Python notices, a snapshot of the last outer step is written too, unless an optimizer
    step has changed the policy since. `config` is the text of the settings: a snapshot of other settings is not used. `more()`
    gives what else is to be kept; it comes back in the state under "more". With `anew` existing snapshots are ignored. Of
    several ranks the first chooses the snapshot that all resume from, and writes. `problems`: digests of the sets of problems;
    UserError where they are not those of the snapshot.
    """

    def __init__(
        self,
        run_dir: Path,
        every: int | None,
        config: str,
        data: RolloutDataModule,
        more: Callable[[], dict[str, Any]],
        anew: bool = False,
        ranks: Ranks = ALONE,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.every = every
        self.config = config
        self.data = data
        self.more = more
        self.ranks = ranks
        self.problems = dict(problems or {})
        file, self.state = self._read() if ranks.first and not anew else (None, None)
        file = ranks.from_first(file)
        if file is not None and not ranks.first:
            self.state = read(file)
        self._last: dict[str, Any] | None = None  # the end of the last outer step, what is large left out
        self._written = self.step
        self._changed = False  # whether the policy is no longer what it was there

    @property
    def step(self) -> int:
        """Outer steps that were done in the snapshot found at the start; 0 without one."""
        return self.state["step"] if self.state else 0

    @property
    def rows(self) -> list[dict[str, float | int | None]]:
        """The rows of metrics up to there."""
        return self.state["rows"] if self.state else []

    # --- resuming ------------------------------------------------------------------------------------------------------

    def put_back(self, trainer: L.Trainer, module: PolicyModule, record: RunRecord) -> None:
        """Restores everything but the optimizer and the random numbers, which exist when training starts."""
        assert self.state is not None
        trainer.fit_loop.epoch_progress.current.processed = self.step  # type: ignore[attr-defined]
        mine = adapter.trained(module.policy)
        weights = {k: sharded.part(tensor, like=mine.get(k)) for k, tensor in self.state["policy"].items()}
        adapter.put_back(module.policy, weights)
        for name, value in self.state["module"].items():
            setattr(module, name, value)
        module.watch.restore(self.rows)
        vars(module.objective.kl_coef).update(self.state["kl"])
        module.clock.restore(self.state["clock"])
        self.data.refresh.restore(self.state["versions"], self.state["copies"])
        self.data.eval_timeouts, self.data.eval_errors = self.state["eval"]
        if "select" in self.state:  # earlier versions had no rule to select prompts
            self.data.selection.restore(self.state["select"])
        record.best = self.state["best"]
        for row in self.rows:  # the tracker starts from the beginning, and knows which rows it sent before
            record.track(trainer, row)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is not None:
            optimizer = trainer.optimizers[0]
            optimizer.load_state_dict(sharded.parts_of_optimizer_state(self.state["optimizer"], optimizer))
            schedule = trainer.lr_scheduler_configs[0].scheduler
            schedule.load_state_dict(self.state["schedule"])
            for group, lr in zip(trainer.optimizers[0].param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = lr  # the optimizer's own may be that of an unfinished step
            if self.ranks.index < len(self.state["random"]):  # the run may have had fewer ranks
                set_random_state(self.state["random"][self.ranks.index])
            self.state = None  # its memory

    # --- writing -------------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._changed = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the record has written its row. Nothing is kept of the last step: the run ends with it."""
        assert isinstance(pl_module, PolicyModule)
        step = trainer.current_epoch + 1
        due = self.every is not None and step % self.every == 0 and step != trainer.max_epochs and not trainer.should_stop
        random_states = self.ranks.gather(random_state())  # each rank has noise of its own, such as an adapter's dropout
        if not self.ranks.first:
            if due:
                self._weights(trainer, pl_module)
            return
        record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
        self._last = {
            "config": self.config,
            "problems": self.problems,
            "step": step,
            "module": {name: getattr(pl_module, name) for name in MODULE},
            "kl": dict(vars(pl_module.objective.kl_coef)),
            "clock": pl_module.clock.state(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "versions": self.data.refresh.versions,
            "copies": self.data.refresh.copies,
            "eval": (self.data.eval_timeouts, self.data.eval_errors),
            "select": self.data.selection_state(step),
            "rows": list(record.rows),
            "best": record.best,
            "random": random_states,
            "more": self.more(),
        }
        self._changed = False
        if due:
            self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, PolicyModule)
        if sharded.is_sharded(pl_module.policy):
            return  # the parts that other ranks hold cannot be gathered now
        if self._last is None or self._last["step"] == self._written or self._changed or files.trouble(exception):
            return
        try:
            self._write(trainer, pl_module)
        except Exception as error:  # the error that ended the run is the one to report
            log.warning("no snapshot of outer step %d: %s", self._last["step"], first_line(str(error)))

    def _write(self, trainer: L.Trainer, module: PolicyModule) -> None:
        assert self._last is not None
        with module.clock.apart():
            state = self._last | self._weights(trainer, module)
        folder = self.run_dir / SNAPSHOTS
        with module.clock.apart():
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / "new.pt"
            try:
                with new.open("w+b") as file:
                    save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                    file.seek(0)
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.replace(new, folder / f"step_{state['step']:05d}-{digest[:16]}.pt")
            finally:
                new.unlink(missing_ok=True)
            for old in snapshots(self.run_dir)[KEPT:]:
                old.unlink()
        self._written = state["step"]
        (self.run_dir / ATTEMPTS_FILE).unlink(missing_ok=True)  # it got further

    def _weights(self, trainer: L.Trainer, module: PolicyModule) -> dict[str, Any]:
        """Weights and optimizer state, which ranks that hold parts of them gather together."""
        return {
            "policy": sharded.weights(module.policy, keep=self.ranks.first),
            "optimizer": sharded.whole(trainer.optimizers[0].state_dict(), keep=self.ranks.first),
        }

    def way_on(self) -> str:
        """What the same command does when it is run again."""
        return f"resumes after outer step {self._written} in {self.run_dir}" if self._written else "starts from the beginning"

    def _read(self) -> tuple[Path | None, State | None]:
        """The newest undamaged snapshot, file and contents; None without one, or where it is of other settings."""
        for file in snapshots(self.run_dir):
            try:
                state = read(file)
            except Exception as error:  # torch raises many kinds, and each means the same
                log.warning("%s is damaged (%s): the snapshot before it is used", file, first_line(str(error)))
                continue
            if renamed.in_text(state["config"]) == self.config and _of_this_version(state):
                if "problems" in state:  # earlier versions kept no digests
                    self._check_problems(state["problems"])
                return file, state
            log.warning("%s is of other settings or of another version of the program: the run starts from the beginning", file)
            return None, None
        return None, None

    def _check_problems(self, before: Mapping[str, str]) -> None:
        """Raise UserError where the problems have changed since: the numbers before and after would not belong together."""
        if changed := differ(before, self.problems):
            raise UserError(
                ", ".join(changed),
                f"its problems have changed since the run in {self.run_dir} was stopped",
                "Put them back, or choose another name=...; resume=false starts again in its place",
            )


def _of_this_version(state: State) -> bool:
    """Whether the snapshot has what this version of the program restores."""
    return set(state["module"]) == set(MODULE) and isinstance(state["random"], list)


def save(state: State, file: IO[bytes]) -> None:
    """`torch.save`, but with the error that ended a write instead of torch's own.

    Whatever ends it, Ctrl-C included, torch's writer is gone when this returns: it may still write when it is destroyed, and
    ends the process where the file is closed by then.
    """
    try:
        torch.save(state, file)
    except BaseException as error:
        cause = (error.__context__ or error) if isinstance(error, RuntimeError) else error
        for each in (error, cause):
            traceback.clear_frames(each.__traceback__)
        raise cause from None


def read(file: Path) -> State:
    """One snapshot, in CPU memory. Raises where its contents do not match the digest in its name."""
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
        if not file.stem.endswith(digest[:16]):
            raise ValueError("its contents do not match the digest in its name")
        contents.seek(0)
        return torch.load(contents, map_location="cpu", weights_only=True)


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that `torch.load` reads without pickle's classes."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
