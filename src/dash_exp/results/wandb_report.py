"""A comparison as a report in Weights & Biases: the table of arms, and panels over the uploaded runs.

The text of the comparison is computed elsewhere and passed in as Markdown.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import METRICS, PHASES
from dash_exp.results.cells import Cell, Results
from dash_exp.results.run_folder import wandb_id
from dash_exp.results.trackers import column
from dash_exp.results.wandb_logger import logged_in

WIDTH, HEIGHT = 8, 6  # of a panel; a report has a width of 24
CURVES = ("reward/mean", "advantage/abs_mean", "filter/kept_fraction", "length/mean_tokens")


def publish(results: Results, place: str, markdown: str) -> str:
    """Save the comparison as a report in `place` ("ENTITY/PROJECT"). Returns the message for the user.

    With a login, the report shows the runs that have been uploaded. The message names the others, with the commands that upload
    them. Without a login, or with WANDB_MODE=offline, no server is contacted and the message has only the commands. Raises
    UserError if `place` is malformed, or if the server does not answer or refuses.
    """
    entity, _, project = place.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"--wandb {place}", "is not of the form ENTITY/PROJECT", "Give both, as in --wandb my-team/dash_exp")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or not logged_in():
        lines = ["W&B: this machine is offline or not logged in (`wandb login`), so no report was saved."]
        nothing = ["None of these runs needs an upload: they were recorded online, or without W&B (logger=csv)."]
        return "\n".join([*lines, *(upload_lines(upload_commands(results, entity, project)) or nothing)])

    from dash_exp.results.wandb_runs import as_user_error, runs  # they need a server

    ids = [i for i in (wandb_id(cell.folder) for cell in results.cells) if i]
    uploaded = runs(f"--wandb {place}", entity, project, ids=ids) if ids else []
    there = {run.id for run in uploaded}
    missing = [cell for cell in results.cells if wandb_id(cell.folder) not in there]
    if not uploaded:
        lines = [f"W&B: none of the {len(results.cells)} run(s) is in {place}, so no report was saved."]
        return "\n".join([*lines, *missing_lines(missing, entity, project)])
    with as_user_error(f"--wandb {place}"):
        url = save_report(results, entity, project, markdown, uploaded)
    lines = [f"W&B: saved the report {url}"]
    if missing:
        lines.append(f"It shows {len(uploaded)} of {len(results.cells)} run(s). The others appear once they are uploaded.")
        lines += missing_lines(missing, entity, project)
    return "\n".join(lines)


def save_report(results: Results, entity: str, project: str, markdown: str, uploaded: Sequence[Any]) -> str:
    """Save a report of these uploaded runs (of `wandb.Api`). Returns its address."""
    import wandb_workspaces.reports.v2 as wr  # asks for a login as soon as an object is created

    question = results.study.get("question")
    runset = wr.Runset(
        entity=entity,
        project=project,
        name="arms",
        filters=filters(uploaded),
        groupby=[f"config.overrides.{column(key)}" for key in results.swept],
    )
    blocks: list[Any] = [
        *([wr.H2("Question"), wr.MarkdownBlock(str(question))] if question else []),
        wr.H2("Arms"),
        wr.MarkdownBlock(markdown),
        wr.H2("Curves and totals"),
        wr.PanelGrid(runsets=[runset], panels=panels(results.tests)),
    ]
    report = wr.Report(
        entity=entity, project=project, title=title(uploaded), description=str(question or ""), blocks=blocks, width="fluid"
    )
    report.save()
    return report.url


def title(uploaded: Sequence[Any]) -> str:
    """The groups of the runs, or the names of runs without a group, in at most 128 characters."""
    names = list(dict.fromkeys(run.group or run.name for run in uploaded))
    text = f"Comparison: {', '.join(names)}"
    return text if len(text) <= 128 else text[:127] + "…"


def filters(uploaded: Sequence[Any]) -> list[Any]:
    """The filter that selects these runs: by group, so that a sweep can grow, or by id if one of them has no group."""
    from wandb_workspaces import expr

    groups = list(dict.fromkeys(run.group for run in uploaded))
    if all(groups):
        return [expr.Metric("Group").isin(groups)]
    return [expr.Metric("ID").isin([run.id for run in uploaded])]


def panels(tests: Sequence[str]) -> list[Any]:
    """Curves over outer steps, reward and accuracy also over seconds of training, and bars of final accuracy and of seconds.

    The metric names are those that `record.RunRecord` logs and those of `result.json`. W&B draws the mean of each arm and the
    range of its seeds.
    """
    import wandb_workspaces.reports.v2 as wr

    accuracy = [f"accuracy/{test}" for test in tests]
    reward, *others = CURVES
    curves = [("step", y) for y in (reward, *accuracy, *others)] + [("time/elapsed_s", y) for y in (reward, *accuracy)]
    arms: Any = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    shown: list[Any] = [wr.LinePlot(title=f"{y} by {x}", x=x, y=[y], title_x=METRICS[x].unit, **arms) for x, y in curves]
    finals: list[Any] = [wr.SummaryMetric(f"{name}/final") for name in accuracy]
    seconds: list[Any] = [wr.SummaryMetric(f"time/{phase}_s") for phase in PHASES]
    shown.append(wr.BarPlot(title="final accuracy", metrics=finals, title_x="fraction", **arms))
    shown.append(wr.BarPlot(title="time by phase", metrics=seconds, title_x="s", **arms))
    for i, panel in enumerate(shown):
        panel.layout = wr.Layout(x=WIDTH * (i % 3), y=HEIGHT * (i // 3), w=WIDTH, h=HEIGHT)
    return shown


def missing_lines(missing: Sequence[Cell], entity: str, project: str) -> list[str]:
    """Lines that say how to upload these runs, or that there is nothing to upload."""
    lines = upload_lines(upload_commands(Results(missing), entity, project))
    if names := [cell.name for cell in missing if not waiting_runs(cell.folder)]:
        lines.append(f"Not in W&B, and their folders have nothing to upload: {'; '.join(names)}")
    return lines


def upload_lines(commands: Sequence[str]) -> list[str]:
    """The commands as lines of the message."""
    return (
        ["Upload the runs that were recorded offline, then repeat this command:", *(f"    {c}" for c in commands)]
        if commands
        else []
    )


def upload_commands(results: Results, entity: str, project: str) -> list[str]:
    """The `wandb sync` commands that upload the offline runs not uploaded yet, one command for each folder of runs.

    `wandb sync` skips what it has already uploaded.
    """
    places: dict[Path, list[Path]] = {}
    for cell in results.cells:
        places.setdefault(cell.folder.parent, []).extend(waiting_runs(cell.folder))
    sync = f"wandb sync --entity {shlex.quote(entity)} --project {shlex.quote(project)}"
    return [f"{sync} {of_place(place, runs)}" for place, runs in places.items() if runs]


def of_place(place: Path, runs: Sequence[Path]) -> str:
    """The arguments that name these offline runs: a pattern if they are all offline runs of a sweep folder, else each run."""
    if len(runs) > 1 and sorted(runs) == sorted(place.glob("*/wandb/offline-run-*")):
        return f"{shlex.quote(str(place))}/*/wandb/offline-run-*"
    return " ".join(shlex.quote(str(run)) for run in runs)


def waiting_runs(folder: Path) -> list[Path]:
    """The offline runs inside this run folder that have not been uploaded yet."""
    return [run for run in sorted(folder.glob("wandb/offline-run-*")) if not any(run.glob("*.synced"))]
