"""Compare the arms of a sweep. Writes an HTML page, the same as Markdown, the figures and a table of the cells.

    python -m dash_exp.report DIR... [out=FOLDER] [baseline=ARM] [target=0.9] [--wandb ENTITY/PROJECT]
    python -m dash_exp.report DIR --watch [every=20] [out=FOLDER] [baseline=ARM] [target=0.9]

DIR           a sweep (multirun/NAME), run folders, or runs in W&B (wandb:ENTITY/PROJECT/GROUP).
              Several DIRs are compared together
out=FOLDER    where to write. Default: report/ in the sweep folder; for several DIRs or for runs in W&B, report/ in the
              current folder
baseline=ARM  the arm that the others are compared with, named as in the report; base is the model before training.
              Default: study.baseline of the sweep, else the first arm
target=0.9    accuracy in distribution; the report shows how long each arm takes to reach it.
              Default: study.target of the sweep, else 95% of the way from the base model to the baseline
--wandb ENTITY/PROJECT    also create a report in W&B
--watch       while a sweep runs: renews report.html as cells progress, and the page loads itself again. Waits where there is no
              sweep yet. Ends when the sweep is over, with its report, or by Ctrl-C, which does not touch the sweep
every=20      with --watch: seconds between two pages, at least

Writes report.html (self-contained), report.md, figures/, cells.csv, and claims.csv where the sweep claims something. Cells that
failed or have not run yet are listed but not included in the numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dash_exp.commands import cli
from dash_exp.core.errors import UserError
from dash_exp.report import live, write
from dash_exp.results.cells import load
from dash_exp.results.summary import verdict_lines

OPTIONS = ("out", "baseline", "target", "every")
NICE = 10  # the page may wait; the cells of the sweep, which may be on the same machine, may not


@dataclass(frozen=True)
class Command:
    """The parsed command line."""

    paths: list[str]
    out: Path
    baseline: str | None = None
    target: float | None = None
    wandb: str | None = None
    watch: bool = False
    every_s: int = live.EVERY_S


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    if command.watch:
        os.nice(NICE)
        live.follow(Path(command.paths[0]).expanduser(), command.out, command.baseline, command.target, command.every_s)
    results = load(command.paths)
    page = write(results, command.out, command.baseline, command.target)
    done = sum(cell.status == "done" for cell in results.cells)
    print(f"{len(results.arms)} arm(s), {done} of {len(results.cells)} cell(s) done: {page}")
    for line in verdict_lines(page.parent / "claims.csv"):
        print(line)
    if command.wandb:
        from dash_exp.results.wandb_report import publish  # wandb is loaded only where it is used

        print(publish(results, command.wandb, brief((command.out / "report.md").read_text(encoding="utf-8"))))


def brief(markdown: str) -> str:
    """Verdicts, summary, arms and differences of a Markdown report, without the figures, which W&B does not have."""
    parts = markdown.split("\n## ")[1:]
    sections = "\n### ".join(["", *parts[: 4 if parts[0].startswith("Verdicts") else 3]])
    lines = [line for line in sections.split("\n") if "](figures/" not in line]
    return "\n".join(lines).strip() + "\n"


def parse(arguments: Sequence[str]) -> Command:
    """Parse and check the command line. Names of cell folders contain =, so an existing folder is never an option."""
    rest, paths, own = list(arguments), [], {}
    wandb, watch = None, False
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "--wandb":
            wandb = value if equals else (rest.pop(0) if rest else "")
            if wandb.count("/") != 1 or not all(wandb.split("/")):
                raise UserError(
                    f"--wandb {wandb}".strip(), "is not of the form ENTITY/PROJECT", "As in --wandb my-team/dash_exp"
                )
        elif argument == "--watch":
            watch = True
        elif equals and name in OPTIONS and not Path(argument).is_dir():
            own[name] = value
        elif argument.startswith("-"):
            known = ", ".join(f"{option}=" for option in OPTIONS)
            raise UserError(argument, "is not an option", f"Use {known}, --wandb or --watch; see --help")
        else:
            paths.append(argument)
    if not paths:
        raise UserError("DIR", "is missing", "Name a sweep, as in multirun/NAME, or run folders; see --help")
    for path in paths:
        name = path.partition("=")[0]
        if "=" in path and not path.startswith("wandb:") and not Path(path).expanduser().is_dir() and "/" not in name:
            raise UserError(path, "is neither a folder nor an option", f"Options are {', '.join(f'{o}=' for o in OPTIONS)}")
    alone = len(paths) == 1 and not paths[0].startswith("wandb:")
    check_watched(watch, alone, wandb, own.get("every"))
    out = Path(own["out"]) if own.get("out") else Path(paths[0] if alone else "") / "report"
    every_s = seconds(own.get("every"))
    return Command(paths, out.expanduser(), own.get("baseline"), fraction(own.get("target")), wandb, watch, every_s)


def check_watched(watch: bool, alone: bool, wandb: str | None, every: str | None) -> None:
    """Raise UserError for what does not go together with --watch, or without it."""
    if watch and not alone:
        raise UserError("--watch", "follows one sweep in a folder", "Name one DIR, as in multirun/NAME")
    if watch and wandb:
        raise UserError("--watch", "does not go with --wandb", "Give --wandb without --watch when the sweep is over")
    if every is not None and not watch:
        raise UserError(f"every={every}", "says how often --watch renews the page", "Add --watch, or leave it out")


def seconds(text: str | None) -> int:
    """The least time between two pages. Raises UserError for anything but a whole number of seconds from 1."""
    if text is None:
        return live.EVERY_S
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"every={text}", "is not a number of seconds", "Write a whole number from 1, as in every=20")
    return int(text)


def fraction(text: str | None) -> float | None:
    """A target accuracy. Raises UserError for anything but a number above 0 and at most 1."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise UserError(f"target={text}", "is not an accuracy", "Write a fraction above 0 and at most 1, as in target=0.9")
    return value


if __name__ == "__main__":
    cli.launch(main)
