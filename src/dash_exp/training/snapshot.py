"""What a run needs to resume from its last outer steps after it was killed: written while it trains, removed at its end.

The sampling noise and the order of the problems are functions of seed and outer step, so a place in the data is a number. Other
noise, such as an adapter's dropout, comes from global generators, whose states are kept for each rank.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.tensor import DTensor

from dash_exp.core import files, process
from dash_exp.core.metrics import Clock
from dash_exp.core.pace import Pace
from dash_exp.core.words import first_line
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.models import adapter, sharded
from dash_exp.results.run_folder import ATTEMPTS_FILE
from dash_exp.training import snapshot_parts, snapshot_search
from dash_exp.training.background import Background
from dash_exp.training.module import PolicyModule
from dash_exp.training.random_state import random_state, set_random_state
from dash_exp.training.record import RunRecord
from dash_exp.training.rollout import RolloutDataModule
from dash_exp.training.snapshot_file import remove_old, write
from dash_exp.training.snapshot_search import MODULE

log = logging.getLogger(__name__)

ASSUMED_RATE = 250e6  # bytes per second that a snapshot is written with, until the first one was
SMALL = 2**28  # bytes


def is_written_beside(size: float, in_cpu_memory: bool) -> bool:
    """Whether a thread writes a snapshot of `size` bytes, from a copy in CPU memory, while training goes on.

    `in_cpu_memory`: the run trains there. A copy of large weights and moments would be most of what it needs once more, and
    what writing takes of the time of the run is limited by `resume_every`.
    """
    return not in_cpu_memory or size <= SMALL


class Snapshots(L.Callback):
    """Writes a snapshot `checkpoints/resume/step_*` as often as `every` says, and restores a run from one.

    `every`: see `Pace.read`. Training waits for a copy of the weights, which a thread then writes, or for the writing (see
    `is_written_beside`). There is never more than one that is being written; what failed there is raised at the end of the next
    outer step, and the end of training waits for it.

    When a run is stopped in a way that Python notices, a snapshot of the last outer step is written too, unless an optimizer
    step has changed the policy since. `config` is the text of the settings: a snapshot of other settings is not used. `more()`
    gives what else is to be kept; it comes back in the state under "more". With `anew` existing snapshots are ignored.
    `problems`: digests of the sets of problems; UserError where they are not those of the snapshot. `now`: a clock, in seconds.

    Of several ranks the first writes one file, and reads the one that all resume from. Where the policy `is_sharded`, and all
    ranks see one disk, each writes its part of weights, moments and older weights, and reads what it needs of such parts
    (`snapshot_parts`); the first writes all else, when the parts are there. Without such a disk the first gathers all of it. A
    run reads either form, whatever it writes. Where the policy is sharded a run that is stopped writes no snapshot: that takes
    all ranks, and one of them may be gone.
    """

    def __init__(
        self,
        run_dir: Path,
        every: int | str | None,
        config: str,
        data: RolloutDataModule,
        more: Callable[[], dict[str, Any]],
        anew: bool = False,
        ranks: Ranks = ALONE,
        problems: Mapping[str, str] | None = None,
        is_sharded: bool = False,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.run_dir = run_dir
        self.pace = Pace.read(every)
        self.config = config
        self.data = data
        self.more = more
        self.ranks = ranks
        self.problems = dict(problems or {})
        self.now = now
        self.in_parts = is_sharded and snapshot_parts.on_one_disk(run_dir, ranks)
        if is_sharded and not self.in_parts and ranks.first:
            log.info("not all ranks see %s: the first gathers the weights of the others for snapshots", run_dir)
        found, self._parts = snapshot_search.found(run_dir, config, self.problems, anew, ranks, self.in_parts)
        self._moments = found["optimizer"].pop("state") if found else {}  # the largest part: sent when each needs its share
        self.state: dict[str, Any] | None = ranks.tensors_from_first(found)
        self._last: dict[str, Any] | None = None  # the end of the last outer step, what is large left out
        self._written = self.step
        self._changed = False  # whether the policy is no longer what it was there
        self._beside = Background("snapshot")
        self._began = self._since = now()  # when training started, and when the last snapshot was begun
        self._spent_at_start_s = 0.0  # by the clock, which goes on where an earlier process was stopped
        self._spent_before_s: float | None = None  # in this process on all snapshots but the last one; None before the first

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
        """Restores everything but the optimizer and the random numbers, which exist when training starts, and what is in parts,
        which needs the sharded policy.
        """
        assert self.state is not None
        trainer.fit_loop.epoch_progress.current.processed = self.step  # type: ignore[attr-defined]
        if self._parts is None:
            adapter.put_back(module.policy, self.state.pop("policy"))  # whole: Lightning has it sharded later
            self.data.refresh.restore(self.state["versions"], self.state["copies"])
        for name, value in self.state["module"].items():
            setattr(module, name, value)
        module.watch.restore(self.rows)
        vars(module.objective.kl_coef).update(self.state["kl"])
        module.clock.restore(self.state["clock"])
        self.data.eval_timeouts, self.data.eval_errors = self.state["eval"]
        if "select" in self.state:  # earlier versions had no rule to select prompts
            self.data.selection.restore(self.state["select"])
        record.best = self.state["best"]
        for row in self.rows:  # a tracker starts from the beginning, and knows which rows it has
            record.track(trainer, row)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has sharded the policy, and nobody has used it: what is in parts comes before all that is made from it."""
        if self._parts is not None:
            assert isinstance(pl_module, PolicyModule) and self.state is not None
            self._parts.put_back(pl_module.policy, self.state.pop("policy"))
            self.data.refresh.restore(self.state["versions"], self._parts.older())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is not None:
            optimizer = trainer.optimizers[0]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {i: self._moments_of(i, parameter) for i, parameter in enumerate(parameters)}
            moments = {i: kept for i, kept in moments.items() if kept}
            optimizer.load_state_dict(self.state["optimizer"] | {"state": moments})
            schedule = trainer.lr_scheduler_configs[0].scheduler
            schedule.load_state_dict(self.state["schedule"])
            for group, lr in zip(trainer.optimizers[0].param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = lr  # the optimizer's own may be that of an unfinished step
            if self.ranks.index < len(self.state["random"]):  # the run may have had fewer ranks
                set_random_state(self.state["random"][self.ranks.index])
            self.state = self._parts = None  # their memory
        assert isinstance(pl_module, PolicyModule)
        self._began = self._since = self.now()
        self._spent_at_start_s = sum(pl_module.clock.snapshot.values())

    def _moments_of(self, index: int, parameter: Tensor) -> dict[str, Any]:
        """What the optimizer keeps of its parameter number `index`, divided as the parameter is."""
        moments = sharded.parts(self.ranks.tensors_from_first(self._moments.pop(index, {})), parameter)
        return moments | self._parts.moments(index, parameter) if self._parts else moments

    # --- writing -------------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._changed = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the record has written its row. Nothing is kept of the last step: the run ends with it."""
        assert isinstance(pl_module, PolicyModule)
        self._beside.check()
        step = trainer.current_epoch + 1
        last = step == trainer.max_epochs or trainer.should_stop
        due = self.ranks.first and not last and self._is_due(trainer, pl_module, step)
        # each rank has noise of its own, such as an adapter's dropout; whether it is time is for the first to say
        all_ranks = self.ranks.gather((random_state(), secrets.token_hex(8) if due else ""))
        token = all_ranks[0][1]
        if self.ranks.first:
            self._last = self._rest(trainer, pl_module, step, [state for state, _ in all_ranks])
            self._changed = False
        if token:
            self._write(trainer, pl_module, is_written_beside(*self._size(trainer, pl_module)), token)

    def _rest(self, trainer: L.Trainer, module: PolicyModule, step: int, random: list[dict[str, Any]]) -> dict[str, Any]:
        """All that a snapshot holds, without what is large. `random`: the states of all ranks."""
        record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
        return {
            "config": self.config,
            "problems": self.problems,
            "step": step,
            "module": {name: getattr(module, name) for name in MODULE},
            "kl": dict(vars(module.objective.kl_coef)),
            "clock": module.clock.state(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "versions": self.data.refresh.versions,
            "copies": {} if self.in_parts else self.data.refresh.older,
            "eval": (self.data.eval_timeouts, self.data.eval_errors),
            "select": self.data.selection_state(step),
            "rows": list(record.rows),
            "best": record.best,
            "random": random,
            "more": self.more(),
        }

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        with self._waiting(pl_module.clock):
            self._beside.wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, PolicyModule)
        if self.ranks.size > 1 and self.ranks.first:  # where one has died the launcher ends all: not while this one saves
            process.stay_to_the_end()
        try:
            self._beside.wait()
        except Exception as error:
            log.warning("a snapshot could not be written: %s", first_line(str(error)))
        try:
            if self._is_missing(pl_module, exception):
                self._write(trainer, pl_module, beside=False)
        except Exception as error:  # the error that ended the run is the one to report
            step = self._last["step"] if self._last else 0
            log.warning("no snapshot of outer step %d: %s", step, first_line(str(error)))

    def _is_missing(self, module: PolicyModule, exception: BaseException) -> bool:
        """Whether there is no snapshot of the last outer step, and one can be written now."""
        if sharded.is_sharded(module.policy):
            return False  # the parts that other ranks hold cannot be gathered now
        return not (self._last is None or self._last["step"] == self._written or self._changed or files.trouble(exception))

    def _is_due(self, trainer: L.Trainer, module: PolicyModule, step: int) -> bool:
        """Whether a snapshot is to be written now. By time: not before the last one is on the disk."""
        if self._beside.busy and self.pace.steps is None:
            return False
        now, spent_s = self.now(), self._spent(module)
        first_s = self._size(trainer, module)[0] / ASSUMED_RATE
        next_s = first_s if self._spent_before_s is None else spent_s - self._spent_before_s
        return self.pace.due(step, run_s=now - self._began, since_s=now - self._since, spent_s=spent_s, next_s=next_s)

    def _spent(self, module: PolicyModule) -> float:
        """Seconds that snapshots have taken in this process, those beside training included."""
        return sum(module.clock.snapshot.values()) - self._spent_at_start_s

    def _size(self, trainer: L.Trainer, module: PolicyModule) -> tuple[int, bool]:
        """Bytes of what this rank writes, and whether the run trains in the CPU memory that a copy would take."""
        optimizer = trainer.optimizers[0]
        weights = [*module.policy.parameters(), *(p for group in optimizer.param_groups for p in group["params"])]
        moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        tensors = {id(tensor): tensor for tensor in [*(w for w in weights if w.requires_grad), *moments]}
        in_cpu_memory = module.policy.device.type in ("cpu", "mps") and (self.in_parts or not sharded.is_sharded(module.policy))
        own = (t.to_local() if self.in_parts and isinstance(t, DTensor) else t for t in tensors.values())
        return sum(tensor.nbytes for tensor in own), in_cpu_memory

    def _write(self, trainer: L.Trainer, module: PolicyModule, beside: bool, token: str = "") -> None:
        """Write what is in `_last` and the weights; `beside`: from a copy of the weights, while training goes on.

        Always in the thread, which no signal interrupts. `token`: of this snapshot, the same on all ranks.
        """
        if not (self.ranks.first or self.in_parts):
            self._weights(trainer, module)
            return
        self._spent_before_s = self._spent(module)
        with self._waiting(module.clock):
            self._beside.wait()  # so that there is one copy at a time
            make = self._part_writer if self.in_parts else self._file_writer
            self._beside.start(
                partial(self._written_by, make(trainer, module, beside, token), module.clock if beside else None)
            )
            if not beside:
                self._beside.wait()
        self._since = self.now()

    def _file_writer(self, trainer: L.Trainer, module: PolicyModule, copy: bool, token: str) -> Callable[[], int]:
        """What writes one file in the thread, and returns the outer step of a snapshot that now counts."""
        assert self._last is not None
        state = self._last | self._weights(trainer, module, copy)

        def work() -> int:
            write(self.run_dir, state)
            return int(state["step"])

        return work

    def _part_writer(self, trainer: L.Trainer, module: PolicyModule, copy: bool, token: str) -> Callable[[], int]:
        """The same for this rank's part; the first also completes the snapshot."""
        step, refresh = trainer.current_epoch + 1, self.data.refresh
        held = {"policy": adapter.trained(module.policy, keep_vars=True), "optimizer": trainer.optimizers[0].state_dict()}
        shapes = {name: tensor.shape for name, tensor in held["policy"].items()}  # in the thread FSDP would not be left alone
        pieces, rest = snapshot_parts.divided(held, self.ranks, copy)
        rest, copies = (self._last or {}) | rest, refresh.older
        folder = snapshot_parts.folder_of(self.run_dir, step, token)

        def work() -> int:
            older = snapshot_parts.older(copies, shapes, self.ranks)
            snapshot_parts.write(folder, pieces | older, self.ranks)
            if not (self.ranks.first and snapshot_parts.complete(folder, rest, self.ranks)):
                return 0
            remove_old(self.run_dir)
            return step

        return work

    def _written_by(self, work: Callable[[], int], clock: Clock | None) -> None:
        """In the thread; its time is counted by `clock`."""
        start = self.now()
        if step := work():
            self._written = step
            (self.run_dir / ATTEMPTS_FILE).unlink(missing_ok=True)  # it got further
        if clock is not None:
            clock.snapshot["snapshot_beside"] += self.now() - start

    @contextmanager
    def _waiting(self, clock: Clock) -> Iterator[None]:
        """Around what training waits for."""
        start = self.now()
        try:
            with clock.apart():
                yield
        finally:
            clock.snapshot["snapshot"] += self.now() - start

    def _weights(self, trainer: L.Trainer, module: PolicyModule, copy: bool = False) -> dict[str, Any]:
        """Weights and optimizer state, which ranks that hold parts of them gather together. `copy`: see `sharded.whole`."""
        return {
            "policy": sharded.weights(module.policy, self.ranks.first, copy),
            "optimizer": sharded.whole(trainer.optimizers[0].state_dict(), self.ranks.first, copy),
        }

    def way_on(self) -> str:
        """What the same command does when it is run again."""
        return f"resumes after outer step {self._written} in {self.run_dir}" if self._written else "starts from the beginning"
