"""Every metric of an outer step: its name, its unit and what it means. Only these names are logged.

Also the clock that accounts seconds to phases, and the file `metrics.csv`.
"""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

PHASES = ("sample", "score", "update", "sync", "eval")


@dataclass(frozen=True)
class Metric:
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("outer steps", "outer steps done; row 0 is the base model"),
    "reward/mean": Metric("reward", "mean over the sampled completions"),
    "accuracy/in_dist": Metric("fraction", "greedy accuracy on the in-distribution test set; blank where not evaluated"),
    "accuracy/out_dist": Metric("fraction", "greedy accuracy on the out-of-distribution test set"),
    "advantage/abs_mean": Metric("advantage", "mean |A| over the sampled completions"),
    "filter/kept_fraction": Metric("fraction", "completions that entered the gradient / completions sampled"),
    "groups/signal_fraction": Metric("fraction", "groups whose rewards are not all equal"),
    "length/mean_tokens": Metric("tokens", "mean completion length"),
    "length/truncated_fraction": Metric("fraction", "completions cut off by the token limit"),
    "policy/nll_nats_per_token": Metric("nats/token", "-log-probability of the sampled tokens: estimates the entropy"),
    "kl/ref_nats_per_token": Metric("nats/token", "k3 estimate of KL(policy || reference), kept completions; blank at KL 0"),
    "kl/coef": Metric("1", "coefficient of the KL term"),
    "loss/total": Metric("loss", "policy loss + coefficient x KL, over the step's denominator"),
    "grad/norm": Metric("L2 norm", "of the whole gradient, before clipping"),
    "optimizer/lr": Metric("1", "learning rate of this step"),
    "score/timeouts": Metric("completions", "gradings that were stopped at the time limit (their reward is 0)"),
    "score/errors": Metric("completions", "gradings that failed (their reward is 0)"),
    "completions/sampled": Metric("completions", "in this outer step"),
    "completions/kept": Metric("completions", "in this outer step"),
    "tokens/sampled": Metric("tokens", "completion tokens sampled in this outer step"),
    "tokens/trained": Metric("tokens", "prompt and completion tokens that went through the policy's backward pass"),
    "policy/version": Metric("optimizer steps", "behind the weights at the end of this outer step"),
    "time/sample_s": Metric("s", "sampling"),
    "time/score_s": Metric("s", "grading, advantages and filter"),
    "time/update_s": Metric("s", "forward, backward and optimizer"),
    "time/sync_s": Metric("s", "handing the new weights to the sampler"),
    "time/eval_s": Metric("s", "greedy evaluation"),
    "time/elapsed_s": Metric("s", "since training began, evaluation excluded"),
}

Row = Mapping[str, float | int | None]


class Clock:
    """Seconds by phase. `with clock("sample"): ...` adds to that phase; on a GPU it waits for the work to end."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[phase] += self._now() - start

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class MetricsFile:
    """`metrics.csv`: the declared columns, one row per outer step, on the disk as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(METRICS)

    def append(self, row: Row) -> None:
        check_declared(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, METRICS, restval="").writerow({k: "" if v is None else v for k, v in row.items()})


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a `metrics.csv`; blank cells are None."""
    with path.open(newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def check_declared(row: Row) -> None:
    """Raise KeyError for a metric that `METRICS` does not declare."""
    unknown = set(row) - set(METRICS)
    if unknown:
        raise KeyError(f"undeclared metrics {sorted(unknown)}: add them to METRICS with unit and meaning")
