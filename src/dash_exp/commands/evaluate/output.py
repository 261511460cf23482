"""What an evaluation writes and prints: its files, a record per problem, its progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dash_exp.commands.evaluate.command import Command
from dash_exp.commands.evaluate.configuration import is_run
from dash_exp.core.errors import UserError
from dash_exp.core.words import duration

if TYPE_CHECKING:  # it loads torch, which is needed only after the command was found good
    from dash_exp.evaluation.evaluator import Evaluation, Graded


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


class Progress:
    """Completions graded and accuracy so far: a bar on a terminal, a line every `line_every_s` seconds elsewhere."""

    def __init__(self, name: str, total: int, line_every_s: float = 10.0) -> None:
        from tqdm import tqdm

        self.name, self.total, self.line_every_s = name, total, line_every_s
        self.bar = (
            tqdm(total=total, desc=name, unit="completion", dynamic_ncols=True, leave=False) if sys.stderr.isatty() else None
        )
        self._start = self._last_line = time.perf_counter()

    def __call__(self, done: int, greedy: Graded) -> None:
        says = f"accuracy {100 * sum(greedy.correct) / len(greedy.correct):.1f}%"
        if self.bar is not None:
            self.bar.set_postfix_str(says, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.perf_counter()
        if now - self._last_line >= self.line_every_s and done < self.total:
            left_s = (now - self._start) / done * (self.total - done)
            print(f"{self.name} {done}/{self.total}  {says}  left {duration(left_s)}", flush=True)
            self._last_line = now

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
