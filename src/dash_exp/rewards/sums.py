"""Weighted sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Reward, Scores


class SumReward:
    """The weighted sum of other rewards. `Scores.components` has each part's own values by its name.

    `correct` names the part whose 1 means a correct completion, since a sum of 1.1 says nothing about that; the answers that
    evaluation counts are that part's too. A part may be a sum or have components itself: they are called `part/component`.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float], correct: str) -> None:
        self.parts, self.weights = dict(parts), dict(weights)
        names = ", ".join(self.parts) or "(none)"
        for name in self.parts:
            if name not in self.weights:
                raise UserError("reward.weights", f"has no weight for {name}", f"Give one for each of {names}")
        if "mean" in self.parts:
            raise UserError("reward.parts.mean", "would be logged as reward/mean, which is the sum", "Choose another name")
        for name, weight in self.weights.items():
            if name not in self.parts:
                raise UserError(
                    f"reward.weights.{name}", f"there is no part of that name in reward.parts ({names})", "Rename it"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"reward.weights.{name}={weight}", "is not a finite number", "Write a number such as 0.1")
        if not any(self.weights.values()):
            raise UserError("reward.weights", "are all 0", "Give at least one part a weight")
        if correct not in self.parts:
            raise UserError(f"reward.correct={correct}", "is no part of the sum", f"Name the part that decides: {names}")
        self.components = [*self.parts]
        self.components += [f"{name}/{inner}" for name, part in self.parts.items() for inner in getattr(part, "components", ())]
        graded = {getattr(part, "grades", None) for part in self.parts.values()} - {None}
        if len(graded) > 1:
            raise UserError("reward.parts", "hold rewards of programs and of answers", "No problem has both: leave one out")
        self.grades = graded.pop() if graded else None
        decides = self.parts[correct]
        inner = getattr(decides, "correct", None)
        self.correct = f"{correct}/{inner}" if inner else correct
        if hasattr(decides, "answers"):
            self.answers = decides.answers

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        scores = {name: part(problems, texts) for name, part in self.parts.items()}
        components = {name: s.rewards for name, s in scores.items()}
        components |= {f"{name}/{inner}": values for name, s in scores.items() for inner, values in s.components.items()}
        return Scores(
            [sum(self.weights[name] * s.rewards[i] for name, s in scores.items()) for i in range(len(texts))],
            timeouts=sum(s.timeouts for s in scores.values()),
            errors=sum(s.errors for s in scores.values()),
            components=components,
        )

    def close(self) -> None:
        for part in self.parts.values():
            if hasattr(part, "close"):
                part.close()
