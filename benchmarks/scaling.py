"""Measures how time and memory of an outer step grow. One factor varies at a time, around a base point, with random weights.

    python benchmarks/scaling.py                                # all factors, some minutes on two cores
    python benchmarks/scaling.py --quick --factors completions,length
    python benchmarks/scaling.py --max-params 1e9 --out outputs/scaling-gpu trainer=gpu model.compute_dtype=bfloat16

Each point runs in its own process (`peak_memory.py`), so that peak memory is measured separately. Writes to the folder
`--out`: `scaling.csv` (a row per process), `scaling.png` and `scaling.svg`. Points that are already in scaling.csv are not
repeated. Overrides after the options apply to every point. Linux only.

Seconds are those of the phases of a step: the median over the steps of a process, without the first one, and over its
repeats. Memory is the peak in these phases. On a GPU it is the memory allocated by torch. On a CPU it is resident memory,
minus what a process has when it starts to work (Python, libraries, problems; the smallest value of all points). On a CPU it
is given only for the whole step, because the allocator keeps memory from one phase to the next.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peak_memory import PHASES, ROOT

GROUP, VOCABULARY = 8, 4096  # with a large vocabulary, few completions end before the limit
SHAPES = [(128, 4), (256, 4), (384, 8), (768, 12), (1024, 24), (1536, 28), (2048, 36), (4096, 32)]  # hidden size, layers
SETTINGS = [
    "logger=csv",
    "model=tiny_random",
    "filter=none",  # random weights get no reward: a filter would drop everything
    f"batch.group_size={GROUP}",
    "eval.limit=2",
    "eval.every=1000000",
    "completions_every=1000000",
    "resume_every=null",  # snapshots also take time and memory
]


@dataclass(frozen=True)
class Factor:
    """A factor: `overrides(value)` sets it to one of its values. `proportional`: what may grow in proportion to it."""

    label: str
    base: int
    values: Sequence[int]
    quick: Sequence[int]
    overrides: Callable[[int], list[str]]
    proportional: tuple[str, ...]  # "time", "memory"


Point = dict[str, int]  # the value of each factor
Row = dict[str, str]  # a row of scaling.csv


def parameters(hidden: int, layers: int) -> int:
    """Number of parameters of a Qwen2 model with 2 KV heads of size 64, intermediate size 4 x hidden and tied embeddings."""
    attention = 2 * hidden**2 + hidden + 2 * 128 * (hidden + 1)
    return VOCABULARY * hidden + layers * (attention + 3 * 4 * hidden**2 + 2 * hidden) + hidden


SIZES = {parameters(*shape): shape for shape in SHAPES}


def architecture(size: int) -> list[str]:
    hidden, layers = SIZES[size]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 2,
    }
    return [f"model.architecture.{name}={value}" for name, value in shape.items()]


def factors(max_params: float) -> dict[str, Factor]:
    sizes = [s for s in SIZES if s <= max_params] or [min(SIZES)]
    return {
        "completions": Factor(
            "completions per outer step",
            64,
            (16, 32, 64, 128, 256),
            (32, 64, 128),
            lambda n: [f"batch.prompts={n // GROUP}"],
            proportional=("time", "memory"),
        ),
        "length": Factor(
            "longest completion (tokens)",
            64,
            (16, 32, 64, 128, 256),
            (32, 64, 128),
            lambda n: [f"rollout.max_response_tokens={n}"],
            proportional=("time", "memory"),
        ),
        "size": Factor("parameters", sizes[0], sizes, sizes[:2], architecture, proportional=("time", "memory")),
        "micro": Factor(
            "tokens of a micro-batch (at most)",
            2048,
            (256, 1024, 2048, 4096, 8192),
            (512, 2048, 8192),
            lambda n: [f"batch.micro_tokens={n}"],
            proportional=("memory",),
        ),
        "decoded": Factor(
            "completions decoded at a time",
            64,
            (8, 16, 32, 64),
            (16, 64),
            lambda n: [] if n == 64 else [f"rollout.sampler.max_sequences={n}"],
            proportional=(),
        ),
        "call": Factor(
            "completions per sampling call",
            64,
            (8, 16, 32, 64),
            (16, 64),
            lambda n: [] if n == 64 else [f"batch.sample_prompts={n // GROUP}"],
            proportional=(),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"), help="folder (default: %(default)s)")
    parser.add_argument("--factors", default="completions,length,size,micro,decoded,call", help="default: %(default)s")
    parser.add_argument("--max-params", type=float, default=2e7, help="largest model (default: %(default).0e)")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of each point, interleaved (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="outer steps; the first one does not count (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer points, one repeat")
    parser.add_argument("overrides", nargs="*", help="settings of every point, as for train.py")
    args = parser.parse_args()
    known = factors(args.max_params)
    names = args.factors.split(",")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"--factors: unknown: {', '.join(unknown)}; the choices are {', '.join(known)}")
    varied = {o.partition("=")[0] for f in known.values() for v in f.values for o in f.overrides(v)} | {"batch.group_size"}
    if fixed := [o for o in args.overrides if o.partition("=")[0] in varied]:
        parser.error(f"{', '.join(fixed)}: the factors set this")
    if args.steps < 2 or args.repeats < 1:
        parser.error("--steps must be at least 2 (the first one does not count), --repeats at least 1")
    base = {name: factor.base for name, factor in known.items()}
    points = [base | {n: v} for n in names for v in (known[n].quick if args.quick else known[n].values)]
    points = [p for i, p in enumerate(points) if p not in points[:i]]  # the base point once
    settings = shlex.join([f"steps={args.steps}", *args.overrides])
    args.out.mkdir(parents=True, exist_ok=True)
    failed = measure(points, 1 if args.quick else args.repeats, settings, known, args.out)
    rows = [r for r in read(args.out / "scaling.csv") if r["settings"] == settings]
    report({n: known[n] for n in names}, base, rows, args.out)
    if failed:
        sys.exit(f"{failed} process(es) failed; run the same command again to retry them")


def measure(points: Sequence[Point], repeats: int, settings: str, known: Mapping[str, Factor], out: Path) -> int:
    """Run the points that are not in scaling.csv yet, and print a line for each. Returns how many failed."""
    done = [(point_of(r), r["repeat"]) for r in read(out / "scaling.csv") if r["settings"] == settings]
    todo = [(p, k) for k in range(repeats) for p in points if (p, str(k)) not in done]
    base = {name: factor.base for name, factor in known.items()}
    print(f"{len(todo)} processes to run, {len(points) * repeats - len(todo)} already done -> {out}", flush=True)
    failed, start = 0, time.perf_counter()
    for i, (point, repeat) in enumerate(todo, start=1):
        what = "_".join(f"{n}-{v}" for n, v in point.items() if v != base[n]) or "base"
        overrides = [*SETTINGS, *(o for n, v in point.items() for o in known[n].overrides(v)), *shlex.split(settings)]
        row = run(overrides, out / f"{what}.{repeat}")
        spent = time.perf_counter() - start
        left = time.strftime("%H:%M:%S", time.gmtime(spent / i * (len(todo) - i)))
        print(f"[{i}/{len(todo)}] {what:24} {said(row, out / f'{what}.{repeat}')}  left {left}", flush=True)
        if row is None:
            failed += 1
        else:
            append(out / "scaling.csv", {**point, "repeat": repeat, "settings": settings, **row})
    return failed


def run(overrides: Sequence[str], folder: Path) -> dict[str, float | str] | None:
    """The measurements of one process; None if it failed. Its weights are deleted."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt: train.py would resume it
    folder.mkdir()
    command = [sys.executable, str(ROOT / "benchmarks" / "peak_memory.py"), str(folder / "memory.json")]
    with (folder / "output.log").open("w") as log:
        status = subprocess.run([*command, *overrides, f"hydra.run.dir={folder}"], stdout=log, stderr=log).returncode
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if status != 0:
        return None
    memory = json.loads((folder / "memory.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    steps = read(folder / "metrics.csv")[2:]  # row 0 is the base model, row 1 the warm-up
    row: dict[str, float | str] = {"device": result["device"], "parameters": result["sizes/parameters"]}
    row |= {f"{p}_s": statistics.median(float(s[f"time/{p}_s"]) for s in steps) for p in PHASES}
    for name in ("tokens/sampled", "tokens/trained", "length/mean_tokens"):
        row[name] = statistics.median(float(s[name]) for s in steps)
    row["micro_tokens_fit"] = float(steps[-1]["batch/micro_tokens"])
    row |= {"built_mib": memory["built"]} | {f"{p}_mib": memory["rss"][p] for p in PHASES}
    row |= {f"{p}_gpu_mib": memory["gpu"][p] if "gpu" in memory else "" for p in PHASES}
    return row


def said(row: Mapping[str, float | str] | None, folder: Path) -> str:
    if row is None:
        lines = (folder / "output.log").read_text().splitlines()
        return f"failed: {lines[-1] if lines else 'no output'} ({folder / 'output.log'})"
    seconds, mib = sum(float(row[f"{p}_s"]) for p in PHASES), max(float(row[f"{p}_mib"]) for p in PHASES)
    return f"{seconds:7.2f} s (sample {row['sample_s']:.2f}, update {row['update_s']:.2f})  peak {mib:,.0f} MiB"


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Mapping[str, float | str]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def point_of(row: Row) -> Point:
    return {name: int(row[name]) for name in factors(0)}


# --- results --------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """One measurement as a function of a factor: all repeats, and their medians."""

    x: list[int]
    repeats: list[list[float]]

    @property
    def median(self) -> list[float]:
        return [statistics.median(r) for r in self.repeats]

    @property
    def exponent(self) -> float | None:
        """Slope of a straight line fitted to log(median) over log(x)."""
        if len(self.x) < 2 or min(self.median) <= 0:
            return None
        return statistics.linear_regression([math.log(x) for x in self.x], [math.log(y) for y in self.median]).slope


def line(name: str, base: Point, rows: Sequence[Row], value: Callable[[Row], float]) -> Line:
    """The rows in which all other factors have their base value."""
    found: dict[int, list[float]] = {}
    for row in rows:
        point = point_of(row)
        if point == base | {name: point[name]}:
            found.setdefault(point[name], []).append(value(row))
    return Line(sorted(found), [found[x] for x in sorted(found)])


def seconds(row: Row, phases: Sequence[str] = PHASES) -> float:
    return sum(float(row[f"{p}_s"]) for p in phases)


def mib(row: Row, floor: float, phases: Sequence[str] = PHASES) -> float:
    """Memory on the GPU if there is one, else resident memory above `floor`."""
    gpu = [row[f"{p}_gpu_mib"] for p in phases]
    return max(map(float, gpu)) if all(gpu) else max(float(row[f"{p}_mib"]) for p in phases) - floor


def report(chosen: Mapping[str, Factor], base: Point, rows: Sequence[Row], out: Path) -> None:
    """Print the fitted exponents and draw the figure."""
    if not rows:
        return
    if len(devices := {row["device"] for row in rows}) > 1:
        print(f"warning: scaling.csv has points of several devices: {', '.join(sorted(devices))}")
    floor = min(float(row["built_mib"]) for row in rows)
    print(f"\nfitted exponents: 1 = proportional, 0 = no growth (memory {memory_words(rows, floor)})")
    print(f"  {'':38}{'sample':>8}{'update':>8}{'time':>8}{'memory':>8}")
    for name, factor in chosen.items():
        lines = [
            line(name, base, rows, lambda r: seconds(r, ["sample"])),
            line(name, base, rows, lambda r: seconds(r, ["update"])),
            line(name, base, rows, seconds),
            line(name, base, rows, lambda r: mib(r, floor)),
        ]
        print(f"  {factor.label:38}" + "".join(f"{'-' if e is None else f'{e:.2f}':>8}" for e in (li.exponent for li in lines)))
    short = [r for r in rows if float(r["length/mean_tokens"]) < 0.9 * int(r["length"])]
    for row in short:
        print(f"completions ended early: {float(row['length/mean_tokens']):.0f} tokens of {row['length']}")
    for row in rows:
        if float(row["micro_tokens_fit"]) < int(row["micro"]):
            print(
                f"memory ran out with {row['micro']} tokens of a micro-batch; the run continued with {row['micro_tokens_fit']}"
            )
    draw(chosen, base, rows, floor, out / "scaling")
    print(f"-> {out / 'scaling.csv'}, {out / 'scaling.png'}")


def memory_words(rows: Sequence[Row], floor: float) -> str:
    on_gpu = bool(rows[0]["update_gpu_mib"])
    return "allocated on the GPU" if on_gpu else f"above the {floor:,.0f} MiB of a process that has not started to work"


def draw(chosen: Mapping[str, Factor], base: Point, rows: Sequence[Row], floor: float, path: Path) -> None:
    """Two panels per factor: seconds of an outer step and peak memory, with logarithmic axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from dash_exp.report.figures import RC, save
    from dash_exp.results.plots import PHASE_COLOURS

    looks = {"sample": PHASE_COLOURS["sample"], "update": PHASE_COLOURS["update"]}
    with rc_context(RC):
        figure = Figure(figsize=(8.4, 2.3 * len(chosen) + 0.9), layout="constrained")
        panels = figure.subplots(len(chosen), 2, squeeze=False)
        for (left, right), (name, factor) in zip(panels, chosen.items(), strict=True):
            total = line(name, base, rows, seconds)
            memory = line(name, base, rows, lambda r: mib(r, floor))
            for phase, colour in looks.items():
                curve(left, line(name, base, rows, lambda r, p=phase: seconds(r, [p])), colour)  # type: ignore[misc]
                if rows[0]["update_gpu_mib"]:  # on a CPU the allocator keeps the memory of earlier phases
                    curve(right, line(name, base, rows, lambda r, p=phase: mib(r, floor, [p])), colour)  # type: ignore[misc]
            for kind, axes, found in (("time", left, total), ("memory", right, memory)):
                curve(axes, found, "#333333")
                if kind in factor.proportional:
                    proportional(axes, found, factor.base)
            label(left, "seconds per outer step", total, factor)
            label(right, "peak memory (MiB)", memory, factor)
        handles = [Line2D([], [], color=c, marker="o", ms=4) for c in [*looks.values(), "#333333"]]
        handles.append(Line2D([], [], color="#999999", linestyle="--", linewidth=1))
        names = ["sampling", "update", "the whole step", "proportional to the base point"]
        figure.legend(handles, names, loc="outside upper center", ncols=4)
        figure.supxlabel(f"{rows[0]['device']}; memory {memory_words(rows, floor)}", fontsize=8, color="#555555")
    save(figure, path)


def curve(axes, found: Line, colour: str) -> None:  # type: ignore[no-untyped-def]
    """Medians as a line, repeats as faint points."""
    axes.plot(found.x, found.median, color=colour, marker="o", ms=3.5, linewidth=1.6)
    for x, values in zip(found.x, found.repeats, strict=True):
        axes.plot([x] * len(values), values, "o", color=colour, ms=3, alpha=0.3, markeredgewidth=0)


def proportional(axes, found: Line, base: int) -> None:  # type: ignore[no-untyped-def]
    if base in found.x:
        y = found.median[found.x.index(base)]
        axes.plot(found.x, [y * x / base for x in found.x], color="#999999", linestyle="--", linewidth=1, zorder=1)


def label(axes, what: str, found: Line, factor: Factor) -> None:  # type: ignore[no-untyped-def]
    from matplotlib import ticker

    from dash_exp.report.figures import counts

    grows = "" if found.exponent is None else f"   ~ x^{found.exponent:.2f}"
    axes.set_title(f"{what}{grows}", loc="left", fontsize=10, color="#1f2328")
    axes.set_xlabel(factor.label, color="#555555")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(found.x, [ticker.EngFormatter(sep="", places=0 if x < 1e6 else 1)(x) for x in found.x])
    low, high = axes.get_ylim()
    if high < 5 * low:  # noise must not look like growth
        axes.set_ylim(math.sqrt(low * high / 5), math.sqrt(low * high * 5))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(counts)
    axes.minorticks_off()


if __name__ == "__main__":
    main()
