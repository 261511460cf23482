"""The sections of a report that are figures: draws each and says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dash_exp.core.metrics import METRICS, PHASES
from dash_exp.report import comparison, figures
from dash_exp.report.comparison import BASE, Difference, Target
from dash_exp.report.document import Block, Cell, Figure, Figures, Paragraph, Section, Table, Tabs
from dash_exp.report.words import percent, seconds, span, test_label, unit
from dash_exp.results.cells import AXES, Results

# Beside the accuracies: what is drawn against each axis, and its title.
CURVES = {
    "reward/mean": "reward of the sampled completions",
    "length/mean_tokens": "completion length, tokens",
    "advantage/abs_mean": "mean |advantage|, before the filter",
    "advantage/kept_abs_mean": "mean |advantage| of those kept",
    "filter/kept_fraction": "completions kept, %",
    "kl/ref_nats_per_token": "KL to the base model, nats per token",
    "grad/norm": "norm of the gradient",
    "time/update_s": "seconds of the update, per outer step",
}


@dataclass(frozen=True)
class Context:
    """What every section is made from. `looks`: a colour and a line style for each arm and the base model."""

    results: Results
    folder: Path
    baseline: str | None
    target: Target | None
    tests: list[str]
    looks: Mapping[str, figures.Style]

    @cached_property
    def against_baseline(self) -> dict[str, list[Difference]]:
        """By test set. Computed once: they are resampled."""
        return {test: comparison.differences(self.results, str(self.baseline), test) for test in self.tests}

    @cached_property
    def against_base(self) -> dict[str, list[Difference]]:
        if self.baseline == BASE:
            return self.against_baseline
        return {test: comparison.differences(self.results, BASE, test) for test in self.tests}

    def named(self, arm: str, text: str | None = None, detail: str = "") -> Cell:
        """A cell in the look of an arm; its text is the arm's name where it is not given."""
        return Cell(arm if text is None else text, detail, *self.looks[arm])

    def baseline_of(self, arm: str) -> str:
        """What this arm is compared with; itself where it is a baseline."""
        return self.results.baseline_of(arm, str(self.baseline))

    @property
    def baseline_name(self) -> str:
        """For captions: the baseline, or which one it is for each arm."""
        if self.baseline == BASE:
            return "the base model"
        if len({self.baseline_of(arm) for arm in self.results.arms}) == 1:
            return str(self.baseline)
        return f"{', '.join(self.results.study['baseline'])} with the same other settings"


def tradeoff(c: Context) -> list[Block]:
    """Accuracy against training time, per test set."""
    drawn = []
    for test in c.tests:
        points = {}
        for arm in c.results.arms:
            time = comparison.over_seeds(c.results, arm, "time/elapsed_s")
            final = comparison.over_seeds(c.results, arm, f"accuracy/{test}/final")
            if time is not None and final is not None:
                points[arm] = (time.value, final)
        if points:
            base = comparison.of_base(c.results, f"accuracy/{test}")
            title, name = f"accuracy {test_label(test)}, %", f"tradeoff-{test}"
            figures.tradeoff(points, base.value if base else None, c.looks, title, c.folder / name)
            words = "; ".join(f"{arm} {percent(e.value)}% in {seconds(s)}" for arm, (s, e) in points.items())
            drawn.append(Figure(name, f"Final accuracy {test_label(test)} against seconds of training: {words}"))
    return [Figures(drawn)] if drawn else []


def differences(c: Context) -> list[Block]:
    """Differences to the baseline with both intervals, per test set."""
    drawn = []
    for test in c.tests:
        found = [d for d in c.against_baseline[test] if d.over_seeds is not None]
        if found:
            name = f"differences-{test}"
            title, xlabel = f"accuracy {test_label(test)}", f"points against {c.baseline_name}"
            figures.differences(found, c.looks, title, xlabel, c.folder / name)
            drawn.append(Figure(name, f"Differences in accuracy {test_label(test)} with two intervals; numbers in the table"))
    return [Figures(drawn)] if drawn else []


def phases(c: Context) -> Section | None:
    """Where the time went."""
    found = {arm: by_phase for arm in c.results.arms if (by_phase := comparison.phases(c.results, arm))}
    if not found:
        return None
    figures.time_by_phase(found, "time by phase", c.folder / "phases")
    columns = [*PHASES, "other"]
    totals = {arm: e.value for arm in found if (e := comparison.over_seeds(c.results, arm, "time/total_s")) is not None}
    rows = [
        [c.named(arm), *(Cell(seconds(by_phase[phase])) for phase in columns), Cell(seconds(totals[arm]))]
        for arm, by_phase in found.items()
    ]
    alt = "Stacked bars of the mean seconds per phase of each arm; the table has the numbers"
    note = "Mean seconds over seeds, evaluation included; other is set-up and files."
    if overlapping := [arm for arm, by_phase in found.items() if sum(by_phase.values()) > 1.001 * totals[arm]]:
        note += f" Sampling and training overlapped in {', '.join(overlapping)}, so the phases add up to more than the total."
    table = Table(["arm", *columns, "total"], rows)
    return Section("phases", "Time", "Where the time went", [Paragraph(note), Figures([Figure("phases", alt)]), table])


def curves(c: Context) -> Section | None:
    """Training curves against each axis."""
    metrics = {f"accuracy/{test}": f"accuracy {test_label(test)}, %" for test in c.tests} | CURVES
    tabs = []
    for axis, label in AXES.items():
        drawn = []
        arms: set[str] = set()
        for metric, title in metrics.items():
            found = [x for arm in c.results.arms if (x := comparison.curve(c.results, arm, metric, axis)) is not None]
            if not found:
                continue
            name = f"curve-{axis}-{metric.replace('/', '-')}"
            is_percent = title.endswith("%")
            figures.curves(found, c.looks, title, label, is_percent, c.folder / name)
            arms |= {x.arm for x in found}
            unit = "" if metric not in METRICS else f" ({METRICS[metric].unit})"
            ends = [f"{x.arm} ends at {x.mean[1][-1]:.3g}" for x in found if x.mean is not None]
            drawn.append(Figure(name, f"{title}{unit} against {label}: {'; '.join(ends)}"))
        missing = [arm for arm in c.results.arms if arm not in arms and c.results.of_arm(arm)]
        note = f"Not drawn, for it has no {label}: {', '.join(missing)}." if missing and drawn else ""
        if drawn:
            tabs.append((label, drawn, note))
    if not tabs:
        return None
    note = (
        "A thick line is the mean over seeds, where all of them have values; thin lines are the seeds. Time and tokens of "
        "evaluation are in no axis."
    )
    if traces := [arm for arm in c.results.arms if comparison.written(c.results, arm)]:
        note += (
            f" {', '.join(traces)} learned from written traces, whose reward, length and advantage are not the policy's own."
        )
    return Section("curves", "Curves", "Training curves", [Paragraph(note), Tabs("axis", tabs)])


def pass_at_k(c: Context) -> Section | None:
    """pass@k before and after training, where it was measured."""
    drawn, rows = [], []
    ks: set[int] = set()
    for test in c.tests:
        found = {arm: by_k for arm in [BASE, *c.results.arms] if (by_k := comparison.pass_at_k(c.results, arm, test))}
        if set(found) <= {BASE}:
            continue
        ks |= {k for by_k in found.values() for k in by_k}
        name = f"pass_at_k-{test}"
        figures.pass_at_k(found, c.looks, f"pass@k {test_label(test)}, %", c.folder / name)
        drawn.append(Figure(name, f"pass@k {test_label(test)} against k for each arm; the table has the numbers"))
        rows += [(arm, test, by_k) for arm, by_k in found.items()]
    if not rows:
        return None
    cells = [
        [
            c.named(arm, "base model" if arm == BASE else None),
            Cell(test_label(test)),
            *(
                Cell("–")
                if k not in by_k
                else Cell(percent(by_k[k].value), "" if arm == BASE or by_k[k].low is None else span(unit(by_k[k]), percent))
                for k in sorted(ks)
            ),
        ]
        for arm, test, by_k in rows
    ]
    table = Table(["arm", "test set", *(f"pass@{k}, %" for k in sorted(ks))], cells, words=2)
    note = "The chance that one of k sampled completions is right (arXiv 2107.03374); means and intervals over seeds."
    return Section("pass-at-k", "pass@k", "pass@k before and after training", [Paragraph(note), Figures(drawn), table])
