"""Checks the graders: grades published solutions against their answers, and runs published programs on their tests.

    python benchmarks/graders.py gsm8k=DIR math500=DIR mbpp=DIR

Prints how many pass, each one that does not pass, and completions per second. For math, the solutions of other problems are
also graded: only those whose answers happen to be equal should pass.
"""

import sys
import time
from collections.abc import Callable

from dash_exp.core.types import Problem
from dash_exp.data import gsm8k, math, mbpp
from dash_exp.rewards.base import Reward
from dash_exp.rewards.code import CodeReward
from dash_exp.rewards.math import MathReward

SETS: dict[str, Callable[[str], list[Problem]]] = {
    "gsm8k": lambda path: gsm8k.load(path, "test"),
    "math500": lambda path: math.load(path, "test"),
    "mbpp": lambda path: [p for split in ("prompt", "test", "validation", "train") for p in mbpp.load(path, split)],
}
GRADINGS = 10_000  # at least, to measure the rate


def grade(name: str, what: str, reward: Reward, problems: list[Problem], texts: list[str]) -> list[bool]:
    start = time.perf_counter()
    scores = reward(problems, texts)
    seconds = time.perf_counter() - start
    right = [r == 1 for r in scores.rewards]
    print(
        f"{name}: {what}: {sum(right):,} of {len(right):,} pass, {scores.timeouts} time-outs, {scores.errors} errors, "
        f"{len(right) / seconds:,.0f} a second",
        flush=True,
    )
    return right


def main() -> None:
    folders = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if not folders or set(folders) - set(SETS):
        sys.exit(__doc__)
    for name, folder in folders.items():
        problems = SETS[name](folder)
        own = [p.solution or "" for p in problems]
        if name == "mbpp":
            right = grade(name, "reference programs", CodeReward(), problems, own)
        else:
            reward = MathReward()
            reward(problems[:4], own[:4])  # start the workers
            right = grade(name, "own solutions", reward, problems, own)
            next_ones = own[1:] + own[:1]
            others = grade(name, "the next problem's solution", reward, problems, next_ones)
            times = -(-GRADINGS // (2 * len(problems)))
            grade(name, "half of each, many times", reward, problems * 2 * times, (own + next_ones) * times)
            wrong = [
                (p, q)
                for p, q, passed in zip(problems, problems[1:] + problems[:1], others, strict=True)
                if passed and p.answer != q.answer
            ]
            for problem, other in wrong:
                print(f"  {problem.id}: {problem.answer!r} was graded as equal to {other.answer!r}")
            reward.close()
        for problem, passed in zip(problems, right, strict=True):
            if not passed:
                print(f"  {problem.id} does not pass: {problem.answer[:80]!r}")


if __name__ == "__main__":
    main()
