"""Every metric of an outer step, with its name, unit and meaning. Only these names are logged.

Also the file `metrics.csv`, and the clock that counts seconds by phase.
"""

from __future__ import annotations

import contextlib
import csv
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_exp.core.watch import CHECKS

PHASES = ("sample", "score", "update", "sync", "eval")
SIDES = ("sample", "update")  # these can run at the same time; the time that each waits for the other is logged
SNAPSHOT = ("snapshot", "snapshot_beside")  # what training waits for a snapshot, and what a thread writes beside it


@dataclass(frozen=True)
class Metric:
    """The unit of a metric, and its meaning in words that the documentation prints."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("outer steps", "outer steps that are done; row 0 is the base model before training"),
    "reward/mean": Metric("reward", "mean reward of the sampled completions, before penalties for truncation or KL"),
    "accuracy/in_dist": Metric(
        "fraction",
        "problems of the in-distribution test set with a correct greedy completion; blank in steps without evaluation",
    ),
    "accuracy/out_dist": Metric("fraction", "the same for the out-of-distribution test set"),
    "advantage/abs_mean": Metric("advantage", "mean |A| of the sampled completions, before the filter"),
    "advantage/kept_abs_mean": Metric(
        "advantage", "mean |A| of the completions that the filter kept, after the filter; blank where it kept none"
    ),
    "filter/kept_fraction": Metric("fraction", "completions that the filter kept / completions that were sampled"),
    "filter/refill_rounds": Metric("sampling calls", "additional calls that sampled new prompts for groups without a signal"),
    "select/skipped_prompts": Metric("prompts", "prompts that were skipped, unsampled, in this outer step (`select=greso`)"),
    "select/screened_out_prompts": Metric(
        "prompts",
        "prompts of which only the first completions were sampled in this outer step (`select=screen`); these count in what is "
        "sampled, and with an advantage of 0 in the means over it",
    ),
    "groups/signal_fraction": Metric(
        "fraction", "groups whose rewards, before penalties, are not all equal; those that were only screened count as groups"
    ),
    "length/mean_tokens": Metric("tokens", "mean length of the sampled completions"),
    "length/truncated_fraction": Metric("fraction", "sampled completions that the token limit cut off"),
    "policy/nll_nats_per_token": Metric(
        "nats/token", "mean -log-probability of the sampled tokens under the policy that sampled them; estimates its entropy"
    ),
    "policy/ratio_mean": Metric("1", "mean pi/pi_old over the trained tokens; pi_old is the policy that sampled them"),
    "policy/ratio_max_log": Metric("nats", "largest |log(pi/pi_old)| of a trained token"),
    "policy/approx_kl_nats_per_token": Metric("nats/token", "k3 estimate of KL(pi_old || pi) on the trained tokens"),
    "policy/clip_fraction": Metric(
        "fraction", "trained tokens on which a clip or a cap of the ratio acts; blank where the loss has neither"
    ),
    "policy/lag": Metric(
        "outer steps", "age of the weights that sampled: outer steps between them and the weights being updated"
    ),
    "mismatch/mean_nats": Metric(
        "nats",
        "mean |log-probability by the sampler - log-probability by the trainer| of the tokens in the first optimizer step; "
        "with stale weights it includes the difference between the two policies",
    ),
    "mismatch/max_nats": Metric("nats", "the largest of these differences"),
    "sampler/servers": Metric("servers", "servers that took part in the last sampling call; blank without rollout=vllm_server"),
    "sampler/resent_prompts": Metric(
        "prompts", "prompts sent to another server after theirs was lost, since the run started; blank without servers"
    ),
    "kl/ref_nats_per_token": Metric(
        "nats/token",
        "k3 estimate of KL(policy || reference): on the kept completions, with kl.place=reward on all; blank where the "
        "coefficient is 0",
    ),
    "kl/coef": Metric("1", "coefficient of the KL in this outer step"),
    "loss/total": Metric(
        "loss",
        "policy loss + coefficient x KL, summed and divided by the denominator; mean over the optimizer steps, without those "
        "that were skipped because they were not finite",
    ),
    "loss/denominator": Metric("completions or tokens", "what the summed loss is divided by; mean over the optimizer steps"),
    "grad/norm": Metric("L2 norm", "norm of the whole gradient, before clipping; mean over the optimizer steps"),
    "optimizer/steps": Metric("optimizer steps", "optimizer steps that were taken in this outer step"),
    "optimizer/skipped_steps": Metric(
        "optimizer steps", "optimizer steps that a check of the watch skipped in this outer step"
    ),
    "optimizer/lr": Metric("1", "learning rate in this outer step"),
    "score/timeouts": Metric("completions", "completions whose grading was stopped at the time limit; their reward is 0"),
    "score/errors": Metric("completions", "completions whose grading failed; their reward is 0"),
    "completions/sampled": Metric("completions", "completions sampled in this outer step"),
    "completions/kept": Metric("completions", "completions that the filter kept in this outer step"),
    "tokens/sampled": Metric("tokens", "completion tokens sampled in this outer step"),
    "tokens/trained": Metric(
        "tokens", "prompt and completion tokens in the update; a prompt counts with each of its completions"
    ),
    "batch/micro_tokens": Metric(
        "tokens", "token budget of a backward pass at the end of this outer step; it is halved when memory runs out"
    ),
    "policy/version": Metric("optimizer steps", "optimizer steps that the policy has had by the end of this outer step"),
    "time/sample_s": Metric("s", "time for sampling"),
    "time/score_s": Metric("s", "time for grading, advantages and filter, and with kl.place=reward for the reference"),
    "time/update_s": Metric("s", "time for forward passes, backward passes and optimizer steps"),
    "time/sync_s": Metric("s", "time to give the sampler the new weights"),
    "time/eval_s": Metric("s", "time for evaluation: greedy completions, and eval.n sampled ones per problem"),
    "time/sample_idle_s": Metric("s", "time from the end of a sampling call to the start of the next, without evaluation"),
    "time/update_idle_s": Metric("s", "time from the end of an update to the start of the next, without evaluation"),
    "time/snapshot_s": Metric(
        "s",
        "time that training waited for the snapshot after the step before: the copy of the weights, or where there is none the "
        "writing; not a part of time/elapsed_s",
    ),
    "time/snapshot_beside_s": Metric(
        "s", "time in which a thread wrote snapshots, beside training, until the end of this step"
    ),
    "time/elapsed_s": Metric("s", "time since training started, without evaluation and the writing of checkpoints"),
    **{f"watch/{name}": Metric("0 or 1", f"1 if this check fired: {check.meaning}") for name, check in CHECKS.items()},
}

# Metrics whose names depend on the run: on its test sets, and on the parts of a summed reward.
FAMILIES: dict[str, Metric] = {
    "eval/": Metric(
        "fraction or tokens",
        "eval/TEST/NAME: further results on a test set. Of greedy completions length/mean_tokens, length/truncated_fraction; "
        "with eval.n sampled completions per problem also avg@n, pass@k, maj@n and the sampled/length/ of these",
    ),
    "accuracy/": Metric(
        "fraction", "accuracy/TEST: problems with a correct greedy completion on a test set; blank in steps without evaluation"
    ),
    "reward/": Metric(
        "reward", "reward/PART: mean of one part of a summed reward over the sampled completions, before its weight"
    ),
}

Row = Mapping[str, float | int | None]


class Clock:
    """Seconds by phase. `with clock("sample"): ...` adds to that phase; on a GPU it waits until the work has finished.

    `idle`: seconds between the end of a side's work and the start of its next, without evaluation. `snapshot`: seconds that
    the writer of snapshots adds, by the names of `SNAPSHOT`. Two threads may use the clock at the same time; on a GPU each
    then also waits for the other's work.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.idle = dict.fromkeys(SIDES, 0.0)
        self.snapshot = dict.fromkeys(SNAPSHOT, 0.0)
        self._snapshot_told = dict(self.snapshot)
        self._training: tuple[float, float] | None = None  # when training started, and the seconds of evaluation until then
        self._trained_s = 0.0  # before this process
        self._apart_s = 0.0  # in `apart`
        self._lock = threading.Lock()
        self._ended: dict[str, tuple[float, float]] = {}  # when a side ended, and the seconds of evaluation until then

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._now()
        if phase in self._ended:
            end, evaluation = self._ended[phase]
            self.idle[phase] += max(0.0, start - end - (self.seconds["eval"] - evaluation))
        try:
            yield
        finally:
            end = self._now()
            with self._lock:
                self.seconds[phase] += end - start
            if phase in SIDES:
                self._ended[phase] = (end, self.seconds["eval"])

    def start_training(self) -> None:
        """Start counting `training_s`, from the value that `restore` brought. What was `apart` before, as when the base model
        was saved, is no part of it.
        """
        self._training = (time.perf_counter() - self._trained_s, self.seconds["eval"])
        self._apart_s = 0.0

    @property
    def training_s(self) -> float:
        """Seconds since training started, without evaluation and what is in `apart`; 0 before training."""
        if self._training is None:
            return self._trained_s
        start, evaluation = self._training
        return time.perf_counter() - start - (self.seconds["eval"] - evaluation) - self._apart_s

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the block out of `training_s`: work that is not training, such as writing a checkpoint."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._apart_s += time.perf_counter() - start

    def new_snapshot_s(self) -> dict[str, float]:
        """What was added to `snapshot` since the last call. A snapshot comes after the row of its step: the next row has it."""
        before, self._snapshot_told = self._snapshot_told, dict(self.snapshot)
        return {name: self._snapshot_told[name] - before[name] for name in SNAPSHOT}

    def state(self) -> dict[str, Any]:
        """The counts so far, for `restore` in another process."""
        counts = {"seconds": dict(self.seconds), "idle": dict(self.idle), "snapshot": dict(self.snapshot)}
        return counts | {"trained_s": self.training_s}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the counts of another process."""
        self.seconds, self.idle, self._trained_s = dict(state["seconds"]), dict(state["idle"]), state["trained_s"]
        self.snapshot = dict(state.get("snapshot", self.snapshot))  # earlier versions did not count it
        self._snapshot_told = dict(self.snapshot)

    def _now(self) -> float:
        import torch  # not above: the command line reads the names of metrics without torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class MetricsFile:
    """`metrics.csv`: a row per outer step, in the file as soon as `append` returns.

    The columns are `METRICS` and `more` (see `FAMILIES`). Creating it replaces an older file.
    """

    def __init__(self, path: Path, more: Iterable[str] = ()) -> None:
        self.path = path
        self.columns = list(dict.fromkeys([*METRICS, *more]))
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(self.columns)

    def append(self, row: Row) -> None:
        """Write a row; None is a blank cell, as is a metric that is not given. KeyError for a metric without a column."""
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"metrics {sorted(unknown)} have no column in {self.path}")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow({k: "" if v is None else v for k, v in row.items()})


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a `metrics.csv`, numbers by metric; blank cells are None."""
    lines = whole_lines(path.read_text(encoding="utf-8")).splitlines()
    return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(lines)]


def whole_lines(text: str) -> str:
    """The text up to its last line break: without a row that was being written when its run was killed."""
    return text[: text.rfind("\n") + 1]


def check_declared(row: Row) -> None:
    """Raise KeyError for a metric that neither `METRICS` nor `FAMILIES` declares."""
    unknown = {name for name in set(row) - set(METRICS) if not name.startswith(tuple(FAMILIES))}
    if unknown:
        raise KeyError(f"undeclared metrics {sorted(unknown)}: add them to METRICS with unit and meaning")
