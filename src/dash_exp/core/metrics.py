"""Every metric of an outer step: its name, its unit and what it means. Only these names are logged.

Also the clock that accounts seconds to phases, and the file `metrics.csv`.
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
SIDES = ("sample", "update")  # they can work at the same time; how long each waits for the other is logged


@dataclass(frozen=True)
class Metric:
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("outer steps", "outer steps done; row 0 is the base model"),
    "reward/mean": Metric("reward", "mean over the sampled completions, before penalties for truncation or KL"),
    "accuracy/in_dist": Metric("fraction", "greedy accuracy on the in-distribution test set; blank where not evaluated"),
    "accuracy/out_dist": Metric("fraction", "greedy accuracy on the out-of-distribution test set"),
    "advantage/abs_mean": Metric("advantage", "mean |A| over the sampled completions, before the filter"),
    "advantage/kept_abs_mean": Metric("advantage", "mean |A| over the kept completions, after the filter"),
    "filter/kept_fraction": Metric("fraction", "completions that entered the gradient, divided by completions sampled"),
    "filter/refill_rounds": Metric("calls", "additional sampling calls, to replace groups without a signal"),
    "groups/signal_fraction": Metric("fraction", "groups whose rewards, before penalties, are not all equal"),
    "length/mean_tokens": Metric("tokens", "mean completion length"),
    "length/truncated_fraction": Metric("fraction", "completions cut off by the token limit"),
    "policy/nll_nats_per_token": Metric("nats/token", "-log-probability of the sampled tokens: estimates the entropy"),
    "policy/ratio_mean": Metric("1", "mean pi/pi_old over trained tokens; pi_old sampled them"),
    "policy/ratio_max_log": Metric("nats", "largest |log(pi/pi_old)| of a trained token"),
    "policy/approx_kl_nats_per_token": Metric("nats/token", "k3 estimate of KL(pi_old || pi), trained tokens"),
    "policy/clip_fraction": Metric(
        "fraction", "trained tokens that a clip or a cap on the ratio acts on; blank where there is none"
    ),
    "policy/lag": Metric("outer steps", "age of the weights that sampled, against those before this step's update"),
    "mismatch/mean_nats": Metric(
        "nats",
        "mean |log-probability of the sampler - of the trainer|, tokens of the first optimizer step; stale weights add to it",
    ),
    "mismatch/max_nats": Metric("nats", "the largest of these differences"),
    "sampler/servers": Metric("servers", "servers that sampled in the last sampling call; blank without rollout=vllm_server"),
    "sampler/resent_prompts": Metric(
        "prompts", "prompts given to another server because theirs was lost, since the start of the run"
    ),
    "kl/ref_nats_per_token": Metric(
        "nats/token", "k3 estimate of KL(policy || reference); kept completions, or all with kl.place=reward; blank at KL 0"
    ),
    "kl/coef": Metric("1", "coefficient of the KL term in this step"),
    "loss/total": Metric(
        "loss",
        "(policy loss + coefficient x KL) / denominator; mean over optimizer steps, without those skipped as not finite",
    ),
    "loss/denominator": Metric("completions or tokens", "what the summed loss is divided by; mean over optimizer steps"),
    "grad/norm": Metric("L2 norm", "norm of the whole gradient, before clipping; mean over optimizer steps"),
    "optimizer/steps": Metric("optimizer steps", "optimizer steps taken in this outer step"),
    "optimizer/skipped_steps": Metric(
        "optimizer steps", "optimizer steps skipped in this outer step because a check (watch) fired"
    ),
    "optimizer/lr": Metric("1", "learning rate of this step"),
    "score/timeouts": Metric("completions", "gradings that were stopped at the time limit (their reward is 0)"),
    "score/errors": Metric("completions", "gradings that failed (their reward is 0)"),
    "completions/sampled": Metric("completions", "completions sampled in this outer step"),
    "completions/kept": Metric("completions", "completions that the filter kept in this outer step"),
    "tokens/sampled": Metric("tokens", "completion tokens sampled in this outer step"),
    "tokens/trained": Metric("tokens", "prompt and completion tokens trained on; a prompt counts with each of its completions"),
    "batch/micro_tokens": Metric(
        "tokens", "token budget of a backward pass at the end of this outer step; lower after memory ran out"
    ),
    "policy/version": Metric("optimizer steps", "optimizer steps that led to the weights at the end of this outer step"),
    "time/sample_s": Metric("s", "sampling"),
    "time/score_s": Metric("s", "grading, advantages and filter; with kl.place=reward also the reference model"),
    "time/update_s": Metric("s", "forward, backward and optimizer"),
    "time/sync_s": Metric("s", "sending the new weights to the sampler"),
    "time/eval_s": Metric("s", "evaluation: greedy, and eval.n sampled completions"),
    "time/sample_idle_s": Metric("s", "time from one sampling call to the next, without evaluation"),
    "time/update_idle_s": Metric("s", "time from one update to the next, without evaluation"),
    "time/elapsed_s": Metric("s", "time since the start of training, without evaluation and the writing of checkpoints"),
    **{f"watch/{name}": Metric("0 or 1", f"1: {check.meaning}") for name, check in CHECKS.items()},
}

# Metrics whose names depend on the run: test sets, parts of a summed reward.
FAMILIES: dict[str, Metric] = {
    "eval/": Metric(
        "fraction or tokens",
        "eval/TEST/NAME, on the test set TEST: length/mean_tokens, length/truncated_fraction; with eval.n also avg@N, pass@K, "
        "maj@N and sampled/length/...; NAME/low and NAME/high are the ends of the 95% interval",
    ),
    "accuracy/": Metric("fraction", "greedy accuracy on the test set of that name; blank where not evaluated"),
    "reward/": Metric("reward", "mean of one part of a summed reward over the sampled completions, before its weight"),
}

Row = Mapping[str, float | int | None]


class Clock:
    """Seconds by phase. `with clock("sample"): ...` adds to that phase; on a GPU it waits for the work to end.

    `idle` holds the seconds between one piece of work of a side and its next, without those of evaluation. Two threads may
    use the clock at a time; on a GPU each then waits for the other's work as well.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.idle = dict.fromkeys(SIDES, 0.0)
        self._training: tuple[float, float] | None = None  # when training began, and the seconds of evaluation until then
        self._trained_s = 0.0  # before this process
        self._apart_s = 0.0
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
        """From here on `training_s` counts, after what `restore` brought."""
        self._training = (time.perf_counter() - self._trained_s, self.seconds["eval"])

    @property
    def training_s(self) -> float:
        """Seconds since training began, without those of evaluation and of `apart`; 0 before it began."""
        if self._training is None:
            return self._trained_s
        start, evaluation = self._training
        return time.perf_counter() - start - (self.seconds["eval"] - evaluation) - self._apart_s

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around work that belongs to no training, such as writing a checkpoint: `training_s` leaves it out."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._apart_s += time.perf_counter() - start

    def state(self) -> dict[str, Any]:
        """What `restore` takes, in another process."""
        return {"seconds": dict(self.seconds), "idle": dict(self.idle), "trained_s": self.training_s}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seconds, self.idle, self._trained_s = dict(state["seconds"]), dict(state["idle"]), state["trained_s"]

    def _now(self) -> float:
        import torch  # the command line reads the names of metrics without it

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class MetricsFile:
    """`metrics.csv`: the declared columns and `more` (see `FAMILIES`), a row per outer step, on the disk as soon as written."""

    def __init__(self, path: Path, more: Iterable[str] = ()) -> None:
        self.path = path
        self.columns = list(dict.fromkeys([*METRICS, *more]))
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(self.columns)

    def append(self, row: Row) -> None:
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"metrics {sorted(unknown)} have no column in {self.path}")
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow({k: "" if v is None else v for k, v in row.items()})


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a `metrics.csv`; blank cells are None."""
    lines = whole_lines(path.read_text()).splitlines()
    return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(lines)]


def whole_lines(text: str) -> str:
    """Without what stands after the last line break: a row that was being written when its run was killed."""
    return text[: text.rfind("\n") + 1]


def check_declared(row: Row) -> None:
    """Raise KeyError for a metric that neither `METRICS` nor `FAMILIES` declares."""
    unknown = {name for name in set(row) - set(METRICS) if not name.startswith(tuple(FAMILIES))}
    if unknown:
        raise KeyError(f"undeclared metrics {sorted(unknown)}: add them to METRICS with unit and meaning")
