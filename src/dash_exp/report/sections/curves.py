"""Training curves: metrics against steps, seconds, tokens and optimizer steps."""

from __future__ import annotations

from dash_exp.report import comparison, figures
from dash_exp.report.document import Figure, Paragraph, Section, Tabs
from dash_exp.report.sections.context import Context
from dash_exp.report.words import test_label
from dash_exp.results.cells import AXES

# The metrics that are drawn in addition to the accuracies, and their titles.
CURVES = {
    "reward/mean": "reward of the sampled completions",
    "policy/nll_nats_per_token": "entropy (mean −log p of sampled tokens), nats per token",
    "length/mean_tokens": "completion length, tokens",
    "length/truncated_fraction": "completions cut off by the limit, %",
    "advantage/abs_mean": "mean |advantage|, before the filter",
    "advantage/kept_abs_mean": "mean |advantage| of kept completions",
    "filter/kept_fraction": "completions kept, %",
    "kl/ref_nats_per_token": "KL to the base model, nats per token",
    "grad/norm": "gradient norm",
    "time/update_s": "update time per outer step, s",
}


def section(c: Context) -> Section | None:
    """One tab for each axis, one figure for each metric."""
    columns = dict.fromkeys(name for cell in c.results.cells for name in cell.metrics)
    of_reward = (name for name in columns if name.startswith("reward/") and not name.endswith("/accepted"))
    parts = {name: f"{name}, before its weight" for name in of_reward if name not in CURVES}
    metrics = {f"accuracy/{test}": f"accuracy {test_label(test)}, %" for test in c.tests} | CURVES | parts
    tabs = []
    axes = {"steps": AXES["steps"]} if c.live else AXES
    for axis, label in axes.items():
        drawn = []
        arms: set[str] = set()
        for metric, title in metrics.items():
            found = [x for arm in c.results.arms if (x := comparison.curve(c.results, arm, metric, axis, c.live)) is not None]
            if not found:
                continue
            name = f"curve-{axis}-{metric.replace('/', '-')}"
            is_percent = title.endswith("%")
            figures.curves(found, c.looks, title, label, is_percent, c.folder / name)
            arms |= {x.arm for x in found}
            scale = 100 if is_percent else 1
            ends = [f"{x.arm} ends at {scale * x.mean[1][-1]:.3g}" for x in found if x.mean is not None]
            drawn.append(Figure(name, f"{title}, against {label}: {'; '.join(ends)}"))
        missing = [arm for arm in c.results.arms if arm not in arms and c.results.of_arm(arm)]
        note = f"No values for {label}, so not drawn: {', '.join(missing)}." if missing and drawn else ""
        if drawn:
            tabs.append((label, drawn, note))
    if not tabs:
        return None
    lines = "A thick line is the mean over seeds, drawn where all seeds have values. Thin lines are the single seeds. "
    several = c.several_seeds or c.live
    note = f"{lines if several else ''}The axes do not include the time and tokens of evaluation."
    if traces := [arm for arm in c.results.arms if comparison.learns_from_traces(c.results, arm)]:
        note += (
            f" {', '.join(traces)} learned from written traces: their reward, length and advantage are not those of the policy."
        )
    return Section("curves", "Curves", "Training curves", [Paragraph(note), Tabs("axis", tabs)])
