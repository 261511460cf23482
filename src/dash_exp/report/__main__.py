"""Compare the arms of a sweep. Writes an HTML page, the same as Markdown, the figures and a table of the cells.

    python -m dash_exp.report DIR... [out=FOLDER] [baseline=ARM] [target=0.9] [--wandb ENTITY/PROJECT]

DIR           a sweep (multirun/NAME), run folders, or runs in W&B (wandb:ENTITY/PROJECT/GROUP).
              Several DIRs are compared together
out=FOLDER    where to write. Default: report/ in the sweep folder; for several DIRs or for runs in W&B, report/ in the
              current folder
baseline=ARM  the arm that the others are compared with, named as in the report; base is the model before training.
              Default: study.baseline of the sweep, else the first arm
target=0.9    accuracy in distribution; the report shows how long each arm takes to reach it.
              Default: study.target of the sweep, else 95% of the way from the base model to the baseline
--wandb ENTITY/PROJECT    also create a report in W&B

Writes report.html (self-contained), report.md, figures/, cells.csv, and claims.csv where the sweep claims something. Cells that
failed or have not run yet are listed but not included in the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dash_exp.commands import cli
from dash_exp.core.errors import UserError
from dash_exp.report import write
from dash_exp.results.cells import load
from dash_exp.results.summary import verdict_lines

OPTIONS = ("out", "baseline", "target")


@dataclass(frozen=True)
class Command:
    """The parsed command line."""

    paths: list[str]
    out: Path
    baseline: str | None = None
    target: float | None = None
    wandb: str | None = None


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
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
    wandb = None
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "--wandb":
            wandb = value if equals else (rest.pop(0) if rest else "")
            if wandb.count("/") != 1 or not all(wandb.split("/")):
                raise UserError(
                    f"--wandb {wandb}".strip(), "is not of the form ENTITY/PROJECT", "As in --wandb my-team/dash_exp"
                )
        elif equals and name in OPTIONS and not Path(argument).is_dir():
            own[name] = value
        elif argument.startswith("-"):
            raise UserError(argument, "is not an option", f"Use {', '.join(f'{o}=' for o in OPTIONS)} or --wandb; see --help")
        else:
            paths.append(argument)
    if not paths:
        raise UserError("DIR", "is missing", "Name a sweep, as in multirun/NAME, or run folders; see --help")
    for path in paths:
        name = path.partition("=")[0]
        if "=" in path and not path.startswith("wandb:") and not Path(path).expanduser().is_dir() and "/" not in name:
            raise UserError(path, "is neither a folder nor an option", f"Options are {', '.join(f'{o}=' for o in OPTIONS)}")
    alone = len(paths) == 1 and not paths[0].startswith("wandb:")
    out = Path(own["out"]) if own.get("out") else Path(paths[0] if alone else "") / "report"
    return Command(paths, out.expanduser(), own.get("baseline"), fraction(own.get("target")), wandb)


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
