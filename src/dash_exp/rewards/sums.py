"""Weighted sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Reward, Scores

DECIMALS = 12  # of a sum, so that 0.1 + 0.2 - 0.3 is 0 and 0.7 + 0.2 + 0.1 is 1


class SumReward:
    """The weighted sum of other rewards: sum over parts of `weights[name] * parts[name]`, rounded to 12 decimals.

    `Scores.components` has the rewards of each part by its name, before the weight. `correct`: the name of the part in which 1
    means a correct completion (a sum of 1.1 does not say); `answers` and `hopeless` are those of this part too. A part may
    be a sum or have components itself: they are named `part/component`. Time-outs and errors are the sums over the parts.

    Raises UserError where weights and parts do not have the same names, a weight is not a finite number, all weights are 0,
    `correct` is not a part, a part is named "mean", or some parts grade programs and others answers.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float], correct: str) -> None:
        self.parts, self.weights = dict(parts), dict(weights)
        names = ", ".join(self.parts) or "(none)"
        for name in self.parts:
            if name not in self.weights:
                raise UserError("reward.weights", f"has no weight for {name}", f"Give one weight for each of {names}")
        if "mean" in self.parts:
            raise UserError("reward.parts.mean", "would be logged as reward/mean, which is the sum", "Choose another name")
        for name, weight in self.weights.items():
            if name not in self.parts:
                raise UserError(
                    f"reward.weights.{name}", f"there is no part of this name in reward.parts ({names})", "Rename it"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"reward.weights.{name}={weight}", "is not a finite number", "Write a number such as 0.1")
        if not any(self.weights.values()):
            raise UserError("reward.weights", "are all 0", "Give at least one part a weight")
        if correct not in self.parts:
            raise UserError(
                f"reward.correct={correct}",
                "is not a part of the sum",
                f"Name the part that says what is correct: {names}",
            )
        self.components = [*self.parts]
        self.components += [f"{name}/{inner}" for name, part in self.parts.items() for inner in getattr(part, "components", ())]
        graded = {getattr(part, "grades", None) for part in self.parts.values()} - {None}
        if len(graded) > 1:
            raise UserError("reward.parts", "have rewards of programs and of answers", "No problem has both: remove one kind")
        self.grades = graded.pop() if graded else None
        compare = [part for part in self.parts.values() if getattr(part, "grades", None) == "answers"]
        self.needs_answer = any(getattr(part, "needs_answer", True) for part in compare)
        decides = self.parts[correct]
        inner = getattr(decides, "correct", None)
        self.correct = f"{correct}/{inner}" if inner else correct
        if hasattr(decides, "answers"):
            self.answers = decides.answers
        if hasattr(decides, "hopeless"):
            self.hopeless = decides.hopeless

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        scores = {name: part(problems, texts) for name, part in self.parts.items()}
        components = {name: s.rewards for name, s in scores.items()}
        components |= {f"{name}/{inner}": values for name, s in scores.items() for inner, values in s.components.items()}
        return Scores(
            [round(sum(self.weights[name] * s.rewards[i] for name, s in scores.items()), DECIMALS) for i in range(len(texts))],
            timeouts=sum(s.timeouts for s in scores.values()),
            errors=sum(s.errors for s in scores.values()),
            components=components,
        )

    def close(self) -> None:
        """Close every part that can be closed."""
        for part in self.parts.values():
            if hasattr(part, "close"):
                part.close()
