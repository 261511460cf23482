"""What is printed while a test set is sampled and graded."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from dash_exp.core.words import duration
from dash_exp.evaluation.evaluator import Graded


class Progress:
    """Completions graded and accuracy so far: a bar on a terminal, a line every `line_every_s` seconds elsewhere."""

    def __init__(self, name: str, total: int, line_every_s: float = 10.0) -> None:
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
