"""Which prompts an outer step samples, before it is known what their completions are worth.

The candidates of an outer step come in an order that no reward has changed (`training.selecting`): the P problems of the step,
then all others, shuffled. A rule says which of them are skipped and how much of a group is sampled before the rest; the
candidates behind take the places.

What a rule does to the gradient. Take rewards 0 and 1, a prompt that is solved with probability p = 1 - q, and advantages
A = r - mean of a group of G. Let v be what a completion adds to the gradient where A = 1. The mean of A v over the group has
the expectation

    E = w p q (E[v | right] - E[v | wrong]),    w = E[K (G - K)] / (G^2 p q),    K of G right

and for v = gradient of log pi it is w grad p. A group that is sampled whole has w = (G - 1)/G. A rule that chooses groups
changes w, so how much a prompt counts, and nothing else. (With rewards of more than two values, a penalty in the advantage or a
filter inside groups, a rule that looks at completions of the group itself can change the direction as well.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dash_exp.algorithms.advantages import all_equal

# A prompt that was sampled in an outer step, by the id of its problem, and the rewards of its completions, shape (G,).
Group = tuple[str, Tensor]


class Selection:
    """A rule, as `training.selecting` uses it; this one skips nothing.

    `first`: how many completions of a candidate are sampled before it is decided whether the rest of its group is. None samples
    whole groups. With `first` there are at most `rounds` such calls in an outer step, of `candidates(...)` prompts.
    """

    first: int | None = None
    rounds: int = 0

    def chance(self, problem: str) -> float:
        """The probability, 0 to 1, with which a candidate is sampled; otherwise it is skipped."""
        return 1.0

    def candidates(self, missing: int, screened: int, found: int) -> int:
        """How many candidates to screen next: `missing` groups are wanted, and of `screened` so far `found` had a signal."""
        return missing

    def beside(self, prompts: int) -> int:
        """The most completions of an outer step that are no part of its `prompts` groups."""
        return 0

    def observe(self, groups: Sequence[Group]) -> None:
        """All that an outer step has sampled. It is called once at its end."""

    def state(self) -> dict[str, Any]:
        """What the next outer steps depend on, for a snapshot: a copy, of plain numbers and texts."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""


@dataclass
class Uniform(Selection):
    """The problems of the step and no others. Each prompt is sampled once a pass and counts the same: w = (G - 1)/G."""


@dataclass
class GRESO(Selection):
    """Skips prompts whose last groups had no signal (GRESO, arXiv 2506.02177).

    A prompt whose last z groups each had all rewards equal is sampled with the probability e^z: `explore_easy` where the last
    of them had rewards of at least `right`, else `explore_hard`. After an outer step e_easy moves by `step`: down where at
    least the share `target_easy` of its groups were such easy ones, up where fewer were, within 0.05 and 0.95; e_hard likewise.
    Nothing moves until a prompt comes again. As in the paper, but for the candidates, which here are never short of P.

    Gradient: whether a prompt is sampled depends on its earlier groups only, so a group that is sampled is an ordinary one,
    with w = (G - 1)/G. But a prompt is sampled e^z times as often: those that are nearly always solved, or never, are
    under-represented, and all others, which take their places, over-represented. With the filter that samples other prompts
    for groups without a signal (`filter=zero_variance`) it is the paper's whole method.
    """

    explore_easy: float = 0.5
    explore_hard: float = 0.5
    target_easy: float = 0.083
    target_hard: float = 0.167
    step: float = 0.01
    right: float = 1.0
    _runs: dict[str, tuple[int, bool]] = field(default_factory=dict, init=False)  # problem: z, and whether the last was easy

    def chance(self, problem: str) -> float:
        z, easy = self._runs.get(problem, (0, False))
        return (self.explore_easy if easy else self.explore_hard) ** z

    def observe(self, groups: Sequence[Group]) -> None:
        again = any(problem in self._runs for problem, _ in groups)
        easy = hard = 0
        for problem, rewards_G in groups:
            flat = bool(all_equal(rewards_G[None]))
            is_easy = flat and bool(rewards_G[0].float() >= self.right)  # in 32 bits: 0.7 + 0.2 + 0.1 is a little less than 1
            easy, hard = easy + is_easy, hard + (flat and not is_easy)
            self._runs[problem] = (self._runs.get(problem, (0, False))[0] + 1 if flat else 0, is_easy)
        if again:
            self.explore_easy = self._moved(self.explore_easy, easy / len(groups) < self.target_easy)
            self.explore_hard = self._moved(self.explore_hard, hard / len(groups) < self.target_hard)

    def _moved(self, explore: float, up: bool) -> float:
        return min(max(explore + (self.step if up else -self.step), 0.05), 0.95)

    def state(self) -> dict[str, Any]:
        return {"runs": dict(self._runs), "easy": self.explore_easy, "hard": self.explore_hard}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._runs = dict(state["runs"])
        self.explore_easy, self.explore_hard = state["easy"], state["hard"]


@dataclass
class Screen(Selection):
    """Samples `first` completions of more prompts, and the rest of the group only where their rewards differ (the two phases of
    SPEED-RL, arXiv 2506.09016v2, withdrawn by an author in 2026).

    Candidates are screened in at most `rounds` calls, each of as many prompts as the share of those with a signal so far lets
    expect to be enough, and of at most `wide` times those that are missing. The first P with a signal are trained on. A group
    is the `first` completions and the rest: what `uniform` would have sampled. Nothing waits for a later step, as in the
    paper's buffer: every completion is the current policy's.

    Gradient: the completions of the screening are trained on, and the group is one whose first n = `first` rewards differ. With
    m = G - n a candidate counts

        w = [n (n-1) + n m (2 - p^(n-1) - q^(n-1)) + m (m-1) (1 - p^n - q^n)] / G^2

    (each pair of a right and a wrong completion, times the probability that the screening then finds a signal). This is n/G of
    uniform's weight for a prompt that is nearly always solved, or never; at p = 1/2 it is half of it with 2 of 8, and 0.9 with
    4 of 8. To train on the rest alone would leave them (1 - p^n - q^n) of theirs, which goes to 0. Since all P groups have a
    signal, and the gradient is divided by the completions of these groups, the step is larger than uniform's.
    """

    first: int = 2
    wide: int = 4
    rounds: int = 3
    _share: float = field(default=1.0, init=False)  # of the candidates of the last outer step, those with a signal

    def candidates(self, missing: int, screened: int, found: int) -> int:
        share = found / screened if screened else self._share
        return math.ceil(missing / max(share, 1 / self.wide))

    def beside(self, prompts: int) -> int:
        return self.rounds * self.wide * prompts * self.first

    def observe(self, groups: Sequence[Group]) -> None:
        signal = [not bool(all_equal(rewards_G[None, : self.first])) for _, rewards_G in groups]
        self._share = sum(signal) / len(signal)

    def state(self) -> dict[str, Any]:
        return {"share": self._share}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share = state["share"]
