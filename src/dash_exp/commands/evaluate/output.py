"""What an evaluation writes: its files, and a record per problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dash_exp.commands.evaluate.command import Command
from dash_exp.commands.evaluate.configuration import is_run
from dash_exp.core.errors import UserError

if TYPE_CHECKING:  # it loads torch, which is needed only after the command was found good
    from dash_exp.evaluation.evaluator import Evaluation


def output_file(command: Command) -> Path:
    """The file of results. An existing file is never overwritten: UserError."""
    target = Path(command.target).expanduser()
    path = Path(command.out).expanduser() if command.out else (target if is_run(target) else Path()) / "evaluation.json"
    if path.suffix != ".json":
        raise UserError(f"out={command.out}", "is not the name of a .json file", "Write out=FILE.json")
    for file in (path, path.with_suffix(".jsonl"), picture(path)):
        if file.exists():
            raise UserError(str(file), "exists already", "Remove it, or write out=OTHER.json")
    return path


def picture(out: Path) -> Path:
    """Where the curve of pass@k goes."""
    return out.with_name("pass_at_k.png" if out.stem == "evaluation" else f"{out.stem}-pass_at_k.png")


def per_problem(done: Evaluation) -> list[dict[str, Any]]:
    """One record per problem: its completions and how they were graded."""
    votes = done.votes()
    rows = []
    for p, problem in enumerate(done.problems):
        row: dict[str, Any] = {"problem": problem.id, "prompt": problem.prompt, "answer": problem.answer}
        for name, graded in (("greedy", done.greedy), ("sampled", done.sampled)):
            if graded is not None:
                each = graded.of_problem(p)
                lists = ("texts", "rewards", "correct", "tokens", "truncated", "answers")
                row[name] = {key: getattr(graded, key)[each] for key in lists if getattr(graded, key) is not None}
        if votes is not None:
            row["majority"] = float(votes[p])
        rows.append(row)
    return rows
