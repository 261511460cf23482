"""Mathematical answers, compared by `grading`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores
from dash_exp.rewards.cores import workers_for
from dash_exp.rewards.grading import gradable, math_answer, math_equal, plain_latex, warm_up
from dash_exp.rewards.patterns import last_matches, one_group
from dash_exp.rewards.quantities import quantity
from dash_exp.rewards.workers import Workers

log = logging.getLogger(__name__)


class MathReward:
    """1 if the last answer of the completion is equivalent to the answer of the problem (numbers, LaTeX, sets...); else 0.

    What is read of a completion says `answers.final_answer`. `pattern`: a regular expression with exactly one group. Only its
    last match is read so, and a completion without a match has no answer. It is searched in the whole text, thoughts included.

    Each answer is graded in one of `workers` processes, which start with the first call. An answer that takes more than
    `timeout_s` seconds counts as a time-out; its process is killed and replaced. An answer that needs more than `memory_mb` MiB
    counts as an error. Both are for what nobody foresaw: `grading` does not evaluate what would take long.

    It can be called from any thread, and from a script without `if __name__ == "__main__":`. Raises UserError for a pattern
    that cannot be used, RuntimeError where no process can be started.
    """

    grades = "answers"

    def __init__(
        self, timeout_s: float = 1.0, workers: int | None = None, pattern: str | None = None, memory_mb: int = 1024
    ) -> None:
        self.timeout_s = timeout_s
        self.pattern = one_group(pattern)
        self.workers = Workers(warm_up, timeout_s, workers or workers_for(), memory_mb)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        read, slow = self._read(texts)
        calls = [(p.answer, t) for p, t in zip(problems, read, strict=True)]
        equal = self.workers.map(math_equal, calls, [p.id for p in problems])
        return Scores([float(e or 0.0) for e in equal.values], equal.timeouts + slow, equal.errors)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """The answer in each completion as `grading.math_answer` spells it; None where there is none or reading it failed."""
        read, slow = self._read(texts)
        found = self.workers.map(math_answer, [(t,) for t in read], [f"completion {i}" for i in range(len(texts))])
        if timeouts := found.timeouts + slow:
            log.warning("reading the answer took more than %s s in %d completions", self.timeout_s, timeouts)
        return found.values

    def hopeless(self, problems: Sequence[Problem]) -> list[str | None]:
        """For each problem whether its answer cannot be read. It would be graded as an error, unless a completion spells it in
        the same way. Numbers and words are read without a parser.
        """
        formulas = [p for p in problems if not quantity(plain_latex(p.answer))]
        read = self.workers.map(gradable, [(p.answer,) for p in formulas], [p.id for p in formulas]).values if formulas else []
        lost = {p.answer for p, is_readable in zip(formulas, read, strict=True) if not is_readable}
        return ["whose answer cannot be read as mathematics" if p.answer in lost else None for p in problems]

    def _read(self, texts: Sequence[str]) -> tuple[Sequence[str], int]:
        """The text that is read in each completion, "" where there is no answer; how many searches took too long."""
        if self.pattern is None:
            return texts, 0
        found, timeouts = last_matches(self.pattern, texts, self.timeout_s)
        return [text or "" for text in found], timeouts

    def close(self) -> None:
        """Stop the worker processes."""
        self.workers.close()
