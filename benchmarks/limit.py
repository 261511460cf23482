r"""Measures how close each phase of an outer step is to the limit of the machine, and where the other time goes.

    python benchmarks/limit.py                        # the embedded default, kl=0, 4 outer steps; into outputs/limit/
    python benchmarks/limit.py algo=grpo kl=0.04 steps=8 --out outputs/limit-grpo
    torchrun --nproc-per-node 2 benchmarks/limit.py trainer=ddp    # two processes that share the work, with one thread each
    python benchmarks/limit.py steps=2 model=smollm2-135m model.compute_dtype=bfloat16 data=reasoning_gym data.task=chain_sum \
        data.max_response_tokens=64 batch.prompts=32    # a real model

The overrides are those of `train.py`. The outer steps run as in training, but without evaluation. The first step is a
warm-up, the others are timed. Two more steps follow that are not timed: in one the executed operations are counted
(`FlopCounterMode`), the other is profiled (`torch.profiler`; with several ranks only the first). Then the speed of the
machine is measured, with the threads of the run.

The operations and bytes that are *needed* are computed from the lengths of prompts and completions (`forward_flops`,
`sampling_bytes`, `optimizer_bytes`), independently of the implementation: without padding, and each prompt once for its
group. The minimum time is

    limit = max(needed operations / matrix rate, minimum bytes moved / memory bandwidth)

The matrix rate is the highest median over a large square product and the shapes of the model's linear layers. It is measured
before and after each step, while all ranks wait, because the speed of a machine varies during a benchmark; each step is
compared with the mean of the two. An operation is a multiplication or an addition in a matrix product; elementwise operations
are not counted. Bytes count as moved from memory, although small weights may be in a cache. Executed attention includes
masked positions.

Operations of sampling are counted only for the Transformers sampler; other samplers run where they cannot be counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from peak_memory import PHASES
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from dash_exp.commands import cli, run
from dash_exp.commands.build import Parts, build, close, make_trainer
from dash_exp.commands.sizes import sizes
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.core.types import Rollouts
from dash_exp.distributed import place
from dash_exp.distributed.ranks import Ranks
from dash_exp.planning.costs import Group, Size, forward_flops, linear_layers, sampling_bytes, size_of, update_flops
from dash_exp.planning.machine import bandwidths, matrix_rates
from dash_exp.results.plots import PHASE_COLOURS
from dash_exp.sampling.hf import HFSampler
from dash_exp.settings.validate import validate
from dash_exp.training.heap import Heap
from dash_exp.training.module import PolicyModule

DEFAULTS = {"kl": "kl.coef=0", "steps": "steps=4"}  # used if no override has the setting
NEEDED = ("sample", "update")  # the phases whose needs are counted
BUSY = 1.2  # a ratio of best to median rate above this means that the machine had other work
BETWEEN_S = 0.15  # measuring time of each product between steps
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the large product

# Attention on the CPU, which torch's counter does not know. Arguments are shapes. The backward pass recomputes the scores.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}

# Names of operations (CPU) and of kernels (GPU); the first match counts. Operations that only create views, allocate or call
# another operation count as overhead.
OVERHEAD = "Python and framework overhead"
ELEMENTWISE = "elementwise, norms, sums"
OPERATION_GROUPS = {
    "attention": r"scaled_dot_product|attention|flash|fmha|::(bmm|baddbmm)$",
    "matrix products": r"::(mm|addmm|addmv|mv|dot)$|mkl\w*_linear|gemm|gemv|cutlass|cublas|nvjet|splitk",
    "softmax, log-softmax": r"softmax|logsumexp|nll_loss",
    "optimizer, clipping": r"_foreach_|_fused_|multi_tensor|addcdiv_|addcmul_|lerp_|linalg_vector_norm",
    OVERHEAD: r"::(view\w*|_unsafe_view|_?reshape\w*|transpose|t|unsqueeze|squeeze|expand\w*|select|slice|narrow|split\w*|chunk"
    r"|unbind|as_strided|permute|alias|detach_?|empty\w*|new_\w+|resize_|linear|matmul|to|_to_copy|contiguous|clone|item"
    r"|_local_scalar_dense|is_nonzero|result_type|lift_fresh|zeros\w*|ones\w*|full\w*|cross_entropy\w*|embedding)$",
    "copies, indexing": r"copy|memcpy|memset|cat\b|catarray|index|gather|scatter|embedding|fill|zero_|nonzero|repeat",
    ELEMENTWISE: r"",
}
GROUP_COLOURS = {
    "matrix products": "#4c72b0",
    "attention": "#8172b3",
    ELEMENTWISE: "#dd8452",
    "softmax, log-softmax": "#55a868",
    "copies, indexing": "#937860",
    "optimizer, clipping": "#c44e52",
    OVERHEAD: "#c7c7c7",
}


# --- what the work needs -------------------------------------------------------------------------------------------------


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one optimizer step: weights, gradients and the optimizer's state (Adam: two moments), each read and written."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return 2 * (2 * sum(p.nbytes for p in weights) + sum(t.nbytes for t in state))


def groups_of(rollouts: Rollouts, kept: bool = False) -> list[Group]:
    """The groups of a sampling call; with `kept` only the completions that enter the gradient."""
    lengths = [len(c.ids) for c in rollouts.completions]
    found = []
    for p, prompt in enumerate(rollouts.prompts):
        mine = range(p * rollouts.group_size, (p + 1) * rollouts.group_size)
        chosen = [i for i in mine if not kept or rollouts.keep_PG.view(-1)[i]]
        found.append(Group(len(prompt.ids), tuple(lengths[i] for i in chosen)))
    return found


# --- what the machine can do ---------------------------------------------------------------------------------------------


def linear_shapes(model: PreTrainedModel, tokens: int) -> dict[str, tuple[int, int, int]]:
    """(tokens, inputs, outputs) of each kind of linear layer, without the LM head, which can take minutes."""
    kinds = {(m.in_features, m.out_features) for m in linear_layers(model)}
    return {f"{tokens} x {k} x {n}": (tokens, k, n) for k, n in sorted(kinds)}


@dataclass(frozen=True)
class Machine:
    """Operations/s, median and best, by dtype and shape; bytes/s of memory by kind of access. `dtype`: that of the run."""

    rates: dict[str, dict[str, tuple[float, float]]]
    bandwidths: dict[str, float]
    dtype: str

    @property
    def rate(self) -> float:
        """The matrix rate."""
        return max(median for median, _ in self.rates[self.dtype].values())

    @property
    def bandwidth(self) -> float:
        return max(self.bandwidths.values())

    @property
    def busy(self) -> float:
        """The largest ratio of best to median rate of a product: about 1 on a machine without other work."""
        return max(best / median for found in self.rates.values() for median, best in found.values())

    def words(self) -> str:
        columns = {
            f"{dtype}, {which}": {shape: found[i] / 1e9 for shape, found in by_shape.items()}
            for dtype, by_shape in self.rates.items()
            for i, which in enumerate(["median", "best"])
        }
        memory = ", ".join(f"{name} {speed / 1e9:.1f}" for name, speed in self.bandwidths.items())
        lines = [
            f"GFLOP/s of matrix products\n{pd.DataFrame(columns).to_string(float_format='{:,.1f}'.format)}",
            f"GB/s of memory: {memory}",
            f"matrix rate {self.rate / 1e9:,.1f} GFLOP/s ({self.dtype}), bandwidth {self.bandwidth / 1e9:.1f} GB/s",
        ]
        if self.busy > BUSY:
            lines.append(
                f"The machine was busy with other work: the best rate of a product was {self.busy:.1f} times its median rate. "
                "The limits and shares below are not reliable."
            )
        return "\n".join(lines)


def rates(model: PreTrainedModel, tokens: int, dtype: str, device: torch.device) -> Machine:
    """Measure a large square product, the model's linear layers with this number of tokens, and memory bandwidth."""
    side = SQUARE.get(device.type, max(SQUARE.values()))
    shapes = {f"{side} x {side} x {side}": (side, side, side)} | linear_shapes(model, tokens)
    dtypes = dict.fromkeys(["float32", "bfloat16", dtype])
    return Machine({d: matrix_rates(shapes, getattr(torch, d), device) for d in dtypes}, bandwidths(device), dtype)


# --- the outer steps -----------------------------------------------------------------------------------------------------


class ProbedClock(Clock):
    """The clock of a run, with a probe around each phase that it times; `probe` takes the name of the phase."""

    def __init__(self) -> None:
        super().__init__()
        self.probe: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with self.probe(phase), super().__call__(phase):
            yield


@dataclass(frozen=True)
class Step:
    """One outer step: seconds, needed operations and minimum bytes moved, by phase. `rate`: the matrix rate at that time."""

    seconds: dict[str, float]
    flops: dict[str, float]
    bytes: dict[str, float]
    rate: float

    def least_seconds(self, phase: str, bandwidth: float) -> float:
        """The minimum time of this phase on this machine."""
        return max(self.flops[phase] / self.rate, self.bytes[phase] / bandwidth)


class Probe(L.Callback):
    """Records what each outer step took and needed. After `steps` plain steps, one step is counted and one is profiled.

    `rate_now` measures the matrix rate while the other ranks wait.
    """

    def __init__(
        self, clock: ProbedClock, steps: int, size: Size, bytes_per_number: int, rate_now: Callable[[], float], group: Ranks
    ) -> None:
        self.clock, self.size, self.bytes_per_number = clock, size, bytes_per_number
        self.rate_now, self.group = rate_now, group
        self.rate = 0.0  # at the last measurement
        self.kinds = ["warm-up", *["timed"] * (steps - 1), "operations counted", "profiled"]
        self.steps: list[Step] = []
        self.executed: dict[str, float] = defaultdict(float)  # operations, by phase
        self.profile: dict[str, dict[str, float]] = {phase: defaultdict(float) for phase in NEEDED}  # seconds, by group
        self.device = torch.device("cpu")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rate = self._rate()

    def _rate(self) -> float:
        self.group.gather(None)
        rate = self.rate_now() if self.group.first else 0.0
        return self.group.from_first(rate)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        before, self.rate = self.rate, self._rate()
        self.device = pl_module.device
        row, calls = pl_module.finish_row(), pl_module.rollouts_of_step
        sampled = [groups_of(r) for r in calls if r.policy_version is not None]  # None: not sampled by the policy
        kept = [g for r in calls for g in groups_of(r, kept=True)]
        reference = pl_module.reference is not None and bool(row["kl/coef"])
        self.steps.append(
            Step(
                seconds={phase: float(row[f"time/{phase}_s"] or 0) for phase in PHASES},
                flops={
                    "sample": sum(forward_flops(self.size, g) for call in sampled for g in call),
                    "update": update_flops(self.size, kept, pl_module.optimization.epochs, reference),
                },
                bytes={
                    "sample": sum(sampling_bytes(self.size, call, self.bytes_per_number) for call in sampled),
                    "update": optimizer_bytes(trainer.optimizers[0]) * int(row["optimizer/steps"] or 0),
                },
                rate=(before + self.rate) / 2,
            )
        )
        done = len(self.steps)
        words = "  ".join(f"{phase} {s:.2f} s" for phase, s in self.steps[-1].seconds.items())
        if self.kinds[done - 1] == "operations counted":
            found = self.group.gather(dict(self.executed))
            self.executed.update({phase: sum(of_rank[phase] for of_rank in found) for phase in NEEDED if phase in found[0]})
        if self.group.first:
            rate = f"{self.steps[-1].rate / 1e9:,.0f} GFLOP/s"
            print(f"outer step {done}/{len(self.kinds)} ({self.kinds[done - 1]}): {words}  matrix rate {rate}", flush=True)
        probes = {"operations counted": self._count, "profiled": self._profile}
        kind = self.kinds[done] if done < len(self.kinds) else ""
        if kind == "profiled" and not self.group.first:
            kind = ""
        if kind == "profiled":
            print("profiling one more step: reading the profile takes longer than the step itself", flush=True)
        self.clock.probe = probes.get(kind, contextlib.nullcontext)  # set here, because sampling can start before the next hook

    @contextlib.contextmanager
    def _count(self, phase: str) -> Iterator[None]:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            yield
        self.executed[phase] += counter.get_total_flops()

    @contextlib.contextmanager
    def _profile(self, phase: str) -> Iterator[None]:
        if phase not in NEEDED:
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=activities) as profiler:
            yield
        for event in profiler.key_averages():
            on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
            if on_gpu and self.device.type == "cuda":
                self.profile[phase][group_of_operation(event.key)] += event.self_device_time_total / 1e6
            elif self.device.type != "cuda" and event.key.startswith("aten::"):
                self.profile[phase][group_of_operation(event.key)] += event.self_cpu_time_total / 1e6


def group_of_operation(name: str) -> str:
    """`aten::addmm -> matrix products`."""
    return next(group for group, pattern in OPERATION_GROUPS.items() if re.search(pattern, name.lower()))


# --- tables and figure --------------------------------------------------------------------------------------------------


def phase_table(probe: Probe, bandwidth: float, counted: Sequence[str]) -> pd.DataFrame:
    """A row per phase: medians over the timed steps. `counted`: the phases whose executed operations were counted.

    Executed operations are those of the counted step, and so is `executed / needed`. The achieved rate is computed from the
    needed operations of the timed steps times this ratio.
    """
    timed, counted_step = probe.steps[1:-2], probe.steps[-2]
    rows = []
    for phase in PHASES:
        seconds = statistics.median(s.seconds[phase] for s in timed)
        row: dict[str, Any] = {"phase": phase, "seconds": seconds}
        if phase in NEEDED:
            flops = statistics.median(s.flops[phase] for s in timed)
            moved = statistics.median(s.bytes[phase] for s in timed)
            limit = statistics.median(s.least_seconds(phase, bandwidth) for s in timed)
            rate = statistics.median(s.rate for s in timed)
            row |= {"needed_gflop": flops / 1e9, "moved_gb": moved / 1e9, "limit_s": limit}
            row["limit_by"] = "operations" if flops / rate >= moved / bandwidth else "bytes"
            shares = [s.least_seconds(phase, bandwidth) / s.seconds[phase] for s in timed if s.seconds[phase]]
            row["share_of_limit"] = statistics.median(shares) if shares else math.nan
            if phase in counted and counted_step.flops[phase]:
                executed = probe.executed[phase]
                factor = executed / counted_step.flops[phase]
                row |= {"executed_gflop": executed / 1e9, "executed_per_needed": factor}
                rates_reached = [s.flops[phase] / s.seconds[phase] / s.rate for s in timed]
                row["share_of_matrix_rate"] = factor * statistics.median(rates_reached)
        rows.append(row)
    columns = ["phase", "seconds", "needed_gflop", "executed_gflop", "executed_per_needed", "moved_gb", "limit_s", "limit_by"]
    return pd.DataFrame(rows, columns=[*columns, "share_of_limit", "share_of_matrix_rate"])


def profile_table(probe: Probe) -> pd.DataFrame:
    """Seconds of the profiled step by phase and group of operations. Time outside of operations is overhead."""
    rows = []
    for phase, found in probe.profile.items():
        wall = probe.steps[-1].seconds[phase]
        seconds = {group: found.get(group, 0.0) for group in GROUP_COLOURS}
        seconds[OVERHEAD] = max(0.0, wall - sum(s for group, s in seconds.items() if group != OVERHEAD))
        for group, s in seconds.items():
            rows.append({"phase": phase, "group": group, "seconds": s, "share": s / wall if wall else math.nan})
    return pd.DataFrame(rows)


def printed(table: pd.DataFrame) -> str:
    """The table as text: shares in percent, `-` for unknown values."""
    formats: dict[str, Callable[[Any], str]] = {
        name: (lambda x: "-" if pd.isna(x) else f"{x:.1%}") if name.startswith("share") else lambda x: f"{x:,.3f}"
        for name in table.columns
        if name not in ("phase", "group", "limit_by")
    }
    return table.to_string(index=False, formatters=formats, na_rep="-")


def plot(phases: pd.DataFrame, profiled: pd.DataFrame, least: Mapping[str, float], path: Path) -> None:
    """Left: the measured outer step and its limit. Right: the profiled step by group of operations, and its minimum time in
    `least`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    measured = dict(zip(phases["phase"], phases["seconds"], strict=True))
    limits = dict(zip(phases["phase"], phases["limit_s"].fillna(0.0), strict=True))
    stack(left, {"measured": measured, "minimum time": limits}, PHASE_COLOURS)
    left.set(ylabel="seconds per outer step", title="measured time and limit of the machine")
    by_phase = profiled.groupby("phase", sort=False)
    bars = {phase: dict(zip(rows["group"], rows["seconds"], strict=True)) for phase, rows in by_phase}
    stack(right, bars, GROUP_COLOURS)
    for i, phase in enumerate(bars):
        right.hlines(least[phase], i - 0.35, i + 0.35, color="black", linestyle="--", label=None if i else "minimum time")
    right.set(ylabel="seconds in the profiled step", title="profile (includes the profiler's own time)")
    for axes in (left, right):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def stack(axes: Any, bars: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> None:
    """One stacked bar per entry of `bars`, with its parts in the order of `colours`."""
    bottoms = dict.fromkeys(bars, 0.0)
    for part, colour in colours.items():
        heights = [bar.get(part, 0.0) for bar in bars.values()]
        if any(heights):
            axes.bar(list(bars), heights, bottom=list(bottoms.values()), color=colour, label=part, width=0.5)
            bottoms = {name: bottom + height for (name, bottom), height in zip(bottoms.items(), heights, strict=True)}


# --- the command ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--out", type=Path, default=Path("outputs/limit"), help="folder for the results (default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    process.keep_few_products()
    named = {re.split(r"[.=]", override)[0] for override in arguments.overrides}
    overrides = [*(default for name, default in DEFAULTS.items() if name not in named), *arguments.overrides]
    cfg = cli.composed(overrides)
    validate(cfg)
    if cfg.steps < 2:
        raise UserError(f"steps={cfg.steps}", "leaves no step to time after the warm-up", "Use at least steps=2")
    if cfg.trainer.devices > 1 and cfg.trainer.accelerator != "cpu":
        raise UserError("trainer.devices", "is more than one GPU, but the limit is computed for one GPU", "Set it to 1")
    if cfg.trainer.devices != place.size():
        where, several = f"trainer.devices={cfg.trainer.devices}", f"torchrun --nproc-per-node {cfg.trainer.devices} ..."
        raise UserError(where, f"needs as many processes, and this is one of {place.size()}", f"Start it with {several}")
    if cfg.rollout.staleness:
        raise UserError(
            "rollout.staleness", "lets sampling and update overlap, but this benchmark times them separately", "Set it to 0"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)

    steps = int(cfg.steps)
    cfg.steps = steps + 2  # before the parts are built, because schedules depend on it
    with run.leading(cfg, arguments.out) as group:
        probe, parts, words = outer_steps(cfg, arguments.out, group)
    print(f"measuring the machine ({probe.device}, {torch.get_num_threads()} thread(s))", flush=True)
    machine = rates(parts.module.policy, cfg.batch.micro_tokens, cfg.model.compute_dtype, probe.device)
    sampler = getattr(parts.data.train_sampler, "sampler", parts.data.train_sampler)  # with several ranks it is wrapped
    counted = NEEDED if isinstance(sampler, HFSampler) else ("update",)
    phases, profiled = phase_table(probe, machine.bandwidth, counted), profile_table(probe)
    last, timed = probe.steps[-1], dict(zip(phases["phase"], phases["seconds"], strict=True))
    slower = ", ".join(f"{phase} took {last.seconds[phase]:.3f} s (timed: {timed[phase]:.3f} s)" for phase in NEEDED)
    print(
        f"\n{words}\n\n{machine.words()}\n\n"
        f"outer step, median of {steps - 1} steps; executed operations: of one more step\n{printed(phases)}\n\n"
        f"profile of one more step, in which {slower}\n{printed(profiled)}\n"
    )
    phases.to_csv(arguments.out / "phases.csv", index=False)
    profiled.to_csv(arguments.out / "profile.csv", index=False)
    figures = {
        "overrides": overrides,
        "device": str(probe.device),
        "threads": torch.get_num_threads(),
        "machine": vars(machine) | {"rate": machine.rate, "bandwidth": machine.bandwidth, "busy": machine.busy},
        "steps": [{"kind": k} | vars(s) for k, s in zip(probe.kinds, probe.steps, strict=True)],
        "executed_flop": dict(probe.executed),
        "phases": phases.astype(object).where(phases.notna(), None).to_dict("records"),
        "profile": profiled.astype(object).where(profiled.notna(), None).to_dict("records"),
    }
    (arguments.out / "limit.json").write_text(json.dumps(figures, indent=1) + "\n")
    least = {phase: last.least_seconds(phase, machine.bandwidth) for phase in NEEDED}
    plot(phases, profiled, least, arguments.out / "limit.png")
    print(f"wrote phases.csv, profile.csv, limit.json and limit.png to {arguments.out}")


def outer_steps(cfg: Any, out: Path, group: Ranks) -> tuple[Probe, Parts, str]:
    """Run `cfg.steps` outer steps (including the last two) like `run.train`, but without record and evaluation."""
    run.quiet()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the profiler
    L.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg, group)
    try:
        clock = ProbedClock()
        parts.clock = parts.data.clock = parts.module.clock = clock
        dtype = getattr(torch, cfg.model.compute_dtype)
        policy = parts.module.policy
        rate_now = partial(matrix_rate, linear_shapes(policy, cfg.batch.micro_tokens), dtype, cfg, group.size)
        probe = Probe(clock, cfg.steps - 2, size_of(policy), dtype.itemsize, rate_now, group)
        trainer = make_trainer(cfg, out, group, [probe, Heap()])
        trainer.limit_val_batches = 0
        written = sizes(cfg, parts, out)
        trainer.fit(parts.module, datamodule=parts.data)
    finally:
        close(parts)
    return probe, parts, written


def matrix_rate(shapes: Mapping[str, tuple[int, int, int]], dtype: torch.dtype, cfg: Any, ranks: int) -> float:
    """Current rate (operations/s) of the fastest of these products and a large square one, with the threads of all ranks."""
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    side, threads = SQUARE[device.type], torch.get_num_threads()
    torch.set_num_threads(threads * ranks)
    try:
        found = matrix_rates({"square": (side, side, side), **shapes}, dtype, device, BETWEEN_S)
    finally:
        torch.set_num_threads(threads)
    return max(median for median, _ in found.values())


if __name__ == "__main__":
    cli.launch(main, follow=outer_steps)
