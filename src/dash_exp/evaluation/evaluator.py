"""Evaluation: greedy accuracy, pass@k, avg@n and maj@n of a sampler on a test set, each with its 95% interval.

The command is `python -m dash_exp.evaluate`. An `Evaluator` samples and grades the completions of a test set, and
`Evaluation.summary` gives the metrics by name.

The unit of every interval is the problem. A fraction of the problems (one greedy completion each) has a Wilson interval; a mean
over problems of something else has a bootstrap interval, in which a problem is drawn together with its completions. A mean over
a single problem has none.

Axes: P problems, N sampled completions of each, K values of k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.measures import Interval, avg_at_n, bootstrap, check_counts, majority_vote, pass_at_k, wilson
from dash_exp.models.texts import decoded
from dash_exp.rewards.base import Reward, correct
from dash_exp.sampling.base import Sampler, Sampling

SAMPLED = 2**32 - 1  # in the key of the noise, in place of training's outer step: evaluation has noise of its own
LISTS = ("texts", "rewards", "correct", "tokens", "truncated", "answers")  # of a `Graded`


@dataclass(frozen=True)
class Graded:
    """`per_problem` completions of each of P problems, as flat lists in the order of the problems; lengths in `tokens`."""

    per_problem: int
    texts: list[str]
    rewards: list[float]
    correct: list[bool]
    tokens: list[int]
    truncated: list[bool]
    answers: list[str | None] | None  # None: the reward extracts no answers
    timeouts: int = 0
    errors: int = 0

    def rows(self, name: str) -> NDArray[Any]:
        """One of the lists by its name, shape (P, per_problem)."""
        return np.array(getattr(self, name)).reshape(-1, self.per_problem)

    def of_problem(self, index: int) -> slice:
        """Where the completions of one problem stand in the lists."""
        return slice(index * self.per_problem, (index + 1) * self.per_problem)

    def put_back(self, order: Sequence[int]) -> Graded:
        """The same in the order of the problems, where those of problem `order[i]` stand at place i."""
        rows = [self.of_problem(int(i)) for i in np.argsort(order)]
        lists: dict[str, Any] = {name: [v for row in rows for v in getattr(self, name)[row]] for name in self._there()}
        return replace(self, **lists)

    def of_all(self, ranks: Ranks) -> Graded:
        """What all ranks graded, where each had its share of the problems; in the order of the problems."""
        there = self._there()
        problems = range(len(self.texts) // self.per_problem)
        parts = ranks.join_shares([{name: getattr(self, name)[self.of_problem(p)] for name in there} for p in problems])
        timeouts, errors = zip(*ranks.gather((self.timeouts, self.errors)), strict=True)
        lists: dict[str, Any] = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        return replace(self, timeouts=sum(timeouts), errors=sum(errors), **lists)

    def _there(self) -> list[str]:
        return [name for name in LISTS if getattr(self, name) is not None]

    def __add__(self, other: Graded) -> Graded:
        there = [name for name in self._there() if getattr(other, name) is not None]
        return replace(
            self,
            **{name: getattr(self, name) + getattr(other, name) for name in there},
            timeouts=self.timeouts + other.timeouts,
            errors=self.errors + other.errors,
        )


@dataclass(frozen=True)
class Evaluation:
    """The graded completions of a test set."""

    problems: list[Problem]
    greedy: Graded
    sampled: Graded | None = None  # N completions of each problem
    k: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """The fraction of the problems whose greedy completion is correct."""
        return float(np.mean(self.greedy.correct))

    @property
    def timeouts(self) -> int:
        """How many gradings took too long."""
        return self.greedy.timeouts + (self.sampled.timeouts if self.sampled else 0)

    @property
    def errors(self) -> int:
        """How many gradings failed for another reason."""
        return self.greedy.errors + (self.sampled.errors if self.sampled else 0)

    def votes(self) -> NDArray[np.float64] | None:
        """maj@n of each problem, shape (P,); None if nothing was sampled or the reward extracts no answers."""
        if self.sampled is None or self.sampled.answers is None:
            return None
        answers, right = self.sampled.answers, self.sampled.correct
        each = [self.sampled.of_problem(p) for p in range(len(self.problems))]
        return np.array([majority_vote(answers[rows], right[rows]) for rows in each])

    def summary(self) -> dict[str, float | None]:
        """Every metric by name, and the ends of its 95% interval as `NAME/low` and `NAME/high`.

        Of the greedy completions: `accuracy`, `length/mean_tokens`, `length/truncated_fraction`. With n sampled completions of
        each problem also `avg@n`, `pass@k` for each k, `maj@n` if the reward extracts answers, and `sampled/length/...`.
        """
        means = {"length/mean_tokens": self.greedy.rows("tokens").mean(axis=1)}
        if self.sampled is not None:
            n, correct_PN = self.sampled.per_problem, self.sampled.rows("correct")
            means[f"avg@{n}"] = avg_at_n(correct_PN)
            means |= {f"pass@{k}": pass_at_k(n, correct_PN.sum(axis=1), k) for k in self.k}
            majority_P = self.votes()
            if majority_P is not None:
                means[f"maj@{n}"] = majority_P
            means["sampled/length/mean_tokens"] = self.sampled.rows("tokens").mean(axis=1)
            means["sampled/length/truncated_fraction"] = self.sampled.rows("truncated").mean(axis=1)
        fractions = {"accuracy": self.greedy.correct, "length/truncated_fraction": self.greedy.truncated}
        found: dict[str, float | None] = {}
        for name, flags in fractions.items():
            found |= _named(name, float(np.mean(flags)), wilson(sum(flags), len(flags)))
        for name, values_P in means.items():
            found |= _named(name, float(values_P.mean()), bootstrap(values_P))
        return found


@dataclass(frozen=True)
class Evaluator:
    """Samples and grades a greedy completion of each prompt, and `n` more with the settings `sampling` if n is not 0.

    `rewards`: that of each test set, by its name. `greedy` must have temperature 0. `k`: the values for pass@k. The noise of
    the n completions is keyed by (seed, problem, index) and differs from that of training; two policies evaluated with the same
    seed get the same noise. `at_a_time`: completions that the sampler is asked for in one call, of whole problems; None asks
    for all at once, which is for a sampler that keeps its batch full by itself. `max_tokens`: of a completion, by the name of
    the test set, where it is not that of `greedy` and `sampling`. Raises UserError for an n or k that cannot be
    used.

    Problems whose prompts have about the same length are in one call, so that little is padded; the longest come first, so that
    what does not fit into memory is seen at once.

    Of several `ranks` all make the same calls, and the sampler gives each of them all completions; each then grades those of
    its share of the problems.
    """

    sampler: Sampler
    rewards: Mapping[str, Reward]
    tokenizer: PreTrainedTokenizerBase
    greedy: Sampling
    n: int = 0
    k: tuple[int, ...] = ()
    sampling: Sampling | None = None
    seed: int = 0
    at_a_time: int | None = None
    ranks: Ranks = ALONE
    max_tokens: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_counts(self.n, self.k)
        assert self.greedy.temperature == 0, "greedy sampling has temperature 0"
        assert not self.n or self.sampling, "n completions need a sampling"

    def names(self, test: str) -> list[str]:
        """The names in `Evaluation.summary` of an evaluation on this test set, without those of intervals."""
        found = ["accuracy", "length/mean_tokens", "length/truncated_fraction"]
        if self.n:
            found += [f"avg@{self.n}", *(f"pass@{k}" for k in self.k)]
            found += [f"maj@{self.n}"] if self.n > 1 and hasattr(self.rewards[test], "answers") else []
            found += ["sampled/length/mean_tokens", "sampled/length/truncated_fraction"]
        return found

    def __call__(self, test: str, prompts: Sequence[Prompt], told: Callable[[int, Graded], None] | None = None) -> Evaluation:
        """Evaluate on the whole test set of this name, of at least one problem. After each call of the sampler
        `told(number of completions graded, the greedy ones of them)` is called. The result has the order of the prompts.
        """
        asked: list[tuple[int, Sampling, tuple[int, ...]]] = [(1, self.greedy, ())]
        if self.n and self.sampling:
            asked.append((self.n, self.sampling, (self.seed, SAMPLED)))
        if test in self.max_tokens:
            asked = [(count, replace(how, max_tokens=self.max_tokens[test]), key) for count, how, key in asked]
        whole: list[Graded] = []
        graded = 0
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p].ids))
        in_turn = [prompts[p] for p in order]
        for count, sampling, key in asked:
            so_far: Graded | None = None
            for part in self._parts(in_turn, self.rewards[test], count, sampling, key):
                so_far = part if so_far is None else so_far + part
                graded += len(part.texts)
                if told is not None:
                    told(graded, whole[0] if whole else so_far)
            assert so_far is not None, "a test set has at least one problem"
            whole.append(so_far.put_back(order))
        return Evaluation([p.problem for p in prompts], whole[0], whole[1] if len(whole) > 1 else None, self.k)

    def texts(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[str]:
        """The completions as text, as rewards and records have them: behind the prefill of their prompts."""
        group = len(completions) // len(prompts)
        written = decoded(self.tokenizer, completions)
        return [prompts[i // group].prefill + text for i, text in enumerate(written)]

    def _parts(
        self, prompts: Sequence[Prompt], reward: Reward, count: int, sampling: Sampling, key: tuple[int, ...]
    ) -> Iterator[Graded]:
        """`count` completions of each prompt, graded, in calls of the sampler of `at_a_time`. Each rank gets those of all."""
        step = len(prompts) if self.at_a_time is None else max(1, self.at_a_time // count)
        for start in range(0, len(prompts), step):
            some = prompts[start : start + step]
            completions = self.sampler.sample(some, count, sampling, key)
            groups = [completions[i : i + count] for i in range(0, len(completions), count)]
            mine = self.ranks.share(some), self.ranks.share(groups)
            graded = self._grade(*mine, reward) if mine[0] else Graded(count, [], [], [], [], [], None)
            yield graded.of_all(self.ranks)

    def _grade(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], reward: Reward) -> Graded:
        """Grade the completions of these prompts, a group of them for each."""
        count = len(groups[0])
        completions = [completion for group in groups for completion in group]
        texts = self.texts(prompts, completions)
        scores = reward([p.problem for p in prompts for _ in range(count)], texts)
        answers = getattr(reward, "answers", None) if count > 1 else None
        return Graded(
            per_problem=count,
            texts=texts,
            rewards=scores.rewards,
            correct=correct(scores, reward),
            tokens=[len(c.ids) for c in completions],
            truncated=[c.truncated for c in completions],
            answers=answers(texts) if answers else None,
            timeouts=scores.timeouts,
            errors=scores.errors,
        )


def _named(name: str, value: float, interval: Interval) -> dict[str, float | None]:
    return {name: value, f"{name}/low": interval[0], f"{name}/high": interval[1]}
