"""Answers to problems of reasoning-gym, scored by their own task (`puzzles`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dash_exp.core.types import Problem
from dash_exp.rewards import puzzles
from dash_exp.rewards.answers import ANSWER_IS, MARKS, PLAIN_NUMBER, boxed_answer, final_answer
from dash_exp.rewards.base import Scores
from dash_exp.rewards.cores import workers_for
from dash_exp.rewards.patterns import last_matches, one_group
from dash_exp.rewards.tags import in_answer_tag, without_thought
from dash_exp.rewards.workers import Workers

NUMBER = re.compile(rf"(?:(?<![\w)])(?<![0-9)]\s)[-+]\s?)?(?:{PLAIN_NUMBER})(?:/[0-9]+|[eE][-+]?[0-9]+)?")


class ReasoningGymReward:
    """1 if the scorer of the problem's task gives the answer of the completion its full score of 1; else 0.

    `partial`: the reward is the score itself, from 0 to 1, as reasoning-gym gives it. Many tasks give a wrong answer of the
    right form 0.01 or 0.05, some a share of what is right. Correct is still only a score of 1.

    `pattern`: a regular expression with exactly one group. Its last match is the answer, and a completion without a match has
    none. Without it see `read`.

    Each answer is scored in one of `workers` processes, which start with the first call. An answer that takes more than
    `timeout_s` seconds counts as a time-out, one that needs more than `memory_mb` MiB or makes the scorer fail as an error. An
    answer that a scorer would run as a program is worth 0 (`puzzles.may_be_scored`). Raises UserError for a pattern that cannot
    be used.
    """

    grades = "answers"
    needs_answer = False  # the scorers of some tasks check an answer by itself

    def __init__(
        self,
        pattern: str | None = None,
        partial: bool = False,
        timeout_s: float = 5.0,
        workers: int | None = None,
        memory_mb: int = 1024,
    ) -> None:
        self.pattern, self.partial, self.timeout_s = one_group(pattern), partial, timeout_s
        self.workers = Workers(puzzles.warm_up, timeout_s, workers or workers_for(), memory_mb)
        if self.pattern:
            self.answers = self._matches

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        slow = 0
        if self.pattern:
            found, slow = last_matches(self.pattern, texts, self.timeout_s)
        else:
            found = [read(text, problem.answer) for problem, text in zip(problems, texts, strict=True)]
        scores, timeouts, errors = self._score(problems, found)
        return Scores([s if self.partial else float(s == 1) for s in scores], timeouts + slow, errors)

    def hopeless(self, problems: Sequence[Problem]) -> list[str | None]:
        """For each problem whether its scorer does not accept its own answer. Some tasks give none, and their problems pass."""
        ours = [p for p in problems if "task" in p.extra and p.answer]
        scores, _, _ = self._score(ours, [p.answer.strip() for p in ours])
        why = {p.id: "whose own answer does not get the full score" for p, s in zip(ours, scores, strict=True) if s != 1}
        return [why.get(p.id) if "task" in p.extra else "that are not of reasoning-gym" for p in problems]

    def _score(self, problems: Sequence[Problem], answers: Sequence[str | None]) -> tuple[list[float], int, int]:
        """The scores, 0 where there is no answer; how many took too long, and how many failed otherwise."""
        scores = [0.0] * len(problems)
        given = [(i, p, a) for i, (p, a) in enumerate(zip(problems, answers, strict=True)) if a is not None]
        calls = [(p.extra["task"], p.extra["options"], a, entry(p)) for _, p, a in given]
        results = self.workers.map(puzzles.score, calls, [p.id for _, p, _ in given])
        for (i, _, _), value in zip(given, results.values, strict=True):
            scores[i] = value or 0.0
        return scores, results.timeouts, results.errors

    def _matches(self, texts: Sequence[str]) -> list[str | None]:
        return last_matches(self.pattern, texts, self.timeout_s)[0]

    def close(self) -> None:
        """Stop the worker processes."""
        self.workers.close()


def entry(problem: Problem) -> dict[str, object]:
    """The problem as reasoning-gym gave it."""
    return {"question": problem.prompt, "answer": problem.answer or None, "metadata": problem.extra["metadata"]}


def read(text: str, answer: str) -> str | None:
    r"""The answer that a completion gives to a problem whose right answer is `answer`; None where all of it is a thought or
    blank. The first of these that there is:

    what stands between the last <answer> and </answer>; where the right answer is a number, the last number in the final
    answer (`answers.final_answer`), without spaces and commas; where it is a formula in $, the final answer; what is in the
    last \boxed; where the right answer is one line, what follows the last "answer is" or "answer:" on its line; the whole
    text. A thought does not count (`tags.without_thought`).
    """
    text = without_thought(text)
    tagged = in_answer_tag(text)
    if tagged is not None:
        return tagged.strip()
    answer = answer.strip()
    if NUMBER.fullmatch(answer) and (numbers := NUMBER.findall(final_answer(text) or "")):
        return re.sub(r"[\s,]", "", numbers[-1])
    if found := (final_answer(text) if answer.startswith("$") else boxed_answer(text)):
        return found
    if (anchors := list(ANSWER_IS.finditer(text))) and "\n" not in answer:
        line = text[anchors[-1].end() :].strip(MARKS).partition("\n")[0].strip(MARKS)
        return line if answer.endswith(".") else line.removesuffix(".").strip(MARKS)
    return text.strip() or None
