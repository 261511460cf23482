"""What a run leaves behind while it trains: `metrics.csv`, `completions/`, `checkpoints/`, and the same in the trackers."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core import files
from dash_exp.core.metrics import MetricsFile
from dash_exp.core.types import Rollouts
from dash_exp.models import sharded
from dash_exp.results.trackers import Tracker
from dash_exp.settings.run import CHECKPOINTS
from dash_exp.training.module import PolicyModule


class RunRecord(L.Callback):
    """Writes a row of metrics per outer step, the completions of every `completions_every`-th, and the `checkpoints`.

    `checkpoints/last` is the policy after the last step, `checkpoints/best` the one with the highest in-distribution accuracy
    so far, saved when it is evaluated. Both are Transformers folders. The choice of `best` looks at the test set, so the
    result of a run is that of `last`. `columns`: metrics whose names depend on the run (`metrics.FAMILIES`). `rows`: those of
    a killed attempt, from which this one resumes. Without `writes`, as on every rank but the first, nothing is written.
    """

    def __init__(
        self,
        run_dir: Path,
        tokenizer: PreTrainedTokenizerBase,
        completions_every: int,
        table_rows: int,
        columns: Sequence[str] = (),
        rows: Sequence[dict[str, float | int | None]] = (),
        writes: bool = True,
        checkpoints: Sequence[str] = CHECKPOINTS,
    ) -> None:
        self.run_dir = run_dir
        self.tokenizer = tokenizer
        self.completions_every = completions_every
        self.table_rows = table_rows
        self.rows: list[dict[str, float | int | None]] = []
        self.best = -1.0
        self.writes = writes
        self.checkpoints = checkpoints
        self.file: MetricsFile | None = None
        if writes:
            self._clear(int(rows[-1]["step"] or 0) if rows else 0)
            (run_dir / "completions").mkdir(parents=True, exist_ok=True)
            self.file = MetricsFile(run_dir / "metrics.csv", columns)
        for row in rows:
            self._write(row)

    def _clear(self, step: int) -> None:
        """Remove what an unfinished attempt left beyond outer step `step`."""
        for result in ("result.json", "problems.csv", "curves.png"):
            (self.run_dir / result).unlink(missing_ok=True)
        for checkpoint in CHECKPOINTS:
            files.mend_folder(self.run_dir / "checkpoints" / checkpoint)
        if step == 0:
            shutil.rmtree(self.run_dir / "checkpoints", ignore_errors=True)
        for file in (self.run_dir / "completions").glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()

    def write_base(self, module: PolicyModule, trainer: L.Trainer) -> None:
        """Row 0: the evaluation of the base model."""
        row = {"step": 0, "policy/version": 0, "time/elapsed_s": 0.0, **module.evaluation_row()}
        self._write(row)
        self.track(trainer, row)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        pl_module.clock.start_training()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1  # the last step is always evaluated

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        accuracy = pl_module.accuracy["in_dist"]
        if accuracy > self.best:
            self.best = accuracy
            with pl_module.clock.apart():
                self._save(pl_module.policy, "best")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        row = pl_module.finish_row()
        row["time/elapsed_s"] = pl_module.clock.training_s
        self._write(row)
        step = int(row["step"] or 0)
        last = step == trainer.max_epochs or trainer.should_stop  # a budget may end the run before its last step
        if self.writes and (step % self.completions_every == 0 or last):
            self._write_completions(step, pl_module.rollouts_of_step)
        with pl_module.clock.apart():  # a server that answers slowly, in one arm, would change what is compared
            self.track(trainer, row)
            if last:
                self._track_completions(trainer, step, pl_module.rollouts_of_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self._save(pl_module.policy, "last")

    def _save(self, policy: PreTrainedModel, name: str) -> None:
        if name not in self.checkpoints:
            return
        weights = sharded.weights(policy, keep=self.writes)
        if self.writes:
            save_model(policy, self.tokenizer, self.run_dir / "checkpoints" / name, weights)

    def _write(self, row: dict[str, float | int | None]) -> None:
        self.rows.append(row)
        if self.file is not None:
            self.file.append(row)

    def _write_completions(self, step: int, rollouts: list[Rollouts]) -> None:
        with files.whole(self.run_dir / "completions" / f"step_{step:05d}.jsonl") as file:
            for completion in completions_of(rollouts):
                file.write(json.dumps(completion, ensure_ascii=False) + "\n")

    def track(self, trainer: L.Trainer, row: dict[str, Any]) -> None:
        """Give a row to the trackers."""
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v is not None}, step=row["step"])

    def _track_completions(self, trainer: L.Trainer, step: int, rollouts: list[Rollouts]) -> None:
        sample = list(itertools.islice(completions_of(rollouts), self.table_rows))
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_table("completions", list(sample[0]), [list(c.values()) for c in sample], step)


def completions_of(rollouts: list[Rollouts]) -> Iterator[dict[str, Any]]:
    """One record per completion, in the order in which they were sampled."""
    for call in rollouts:
        rewards, advantages = call.rewards_PG.view(-1).tolist(), call.advantages_PG.view(-1).tolist()
        keep = call.keep_PG.view(-1).tolist()
        for i, (completion, text) in enumerate(zip(call.completions, call.texts, strict=True)):
            problem = call.prompts[i // call.group_size].problem
            yield {
                "problem": problem.id,
                "prompt": problem.prompt,
                "completion": text,
                "answer": problem.answer,
                "reward": rewards[i],
                **{f"reward/{name}": values[i] for name, values in call.components.items()},
                "advantage": round(advantages[i], 6),
                "kept": keep[i],
                "policy_version": call.policy_version,
                "tokens": len(completion.ids),
                "truncated": completion.truncated,
            }


def save_model(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """A Transformers folder, complete or not there. `weights`: the state dict, where the policy has not the whole of it."""
    with files.whole_folder(folder) as new:
        policy.save_pretrained(new, state_dict=None if weights is None else dict(weights))
        tokenizer.save_pretrained(new)
