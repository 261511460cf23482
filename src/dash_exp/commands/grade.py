"""Show how a reward grades one completion: the answer that it reads in it, and the reward.

    python -m dash_exp.grade ANSWER TEXT [name=value ...]

ANSWER        the right answer of the problem, as in the data
TEXT          the completion; - reads it from standard input
reward=math   the reward, default math. Any of its settings can be given: "reward.pattern='<a>(.*)</a>'"

Rewards that need more of a problem than its answer, such as the tests of a program, are tried with
python -m dash_exp.evaluate on data that has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.utils import get_object
from omegaconf import DictConfig

from dash_exp.commands import cli
from dash_exp.commands.parts import made, named, refusing
from dash_exp.core.errors import UserError
from dash_exp.core.process import importing
from dash_exp.core.types import Problem
from dash_exp.settings.validate import validate


@dataclass(frozen=True)
class Command:
    """The command line: the right answer, the completion, and overrides of the configuration."""

    answer: str
    text: str
    overrides: list[str]


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    cfg = configured(command)
    text = sys.stdin.read() if command.text == "-" else command.text
    for name, value in graded(cfg, command.answer, text).items():
        print(f"{name:<12}{value}")


def parse(arguments: Sequence[str]) -> Command:
    """Read and check the command line. The first two arguments are texts, also with = in them, as in x=5."""
    if len(arguments) < 2 or arguments[1].startswith(("reward=", "reward.")):
        wrong = "is the right answer, and the completion is missing"
        raise UserError(arguments[0], wrong, "Write python -m dash_exp.grade ANSWER TEXT, with quotes around each; see --help")
    answer, text, *overrides = arguments
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(override, "is not of the form name=value", "Put quotes around the completion; see --help")
    return Command(answer, text, overrides)


def configured(command: Command) -> DictConfig:
    """The settings, with the reward. They are checked, and nothing is loaded."""
    chosen = any(override.startswith("reward=") for override in command.overrides)
    cfg = cli.composed([*([] if chosen else ["reward=math"]), *command.overrides])
    validate(cfg)
    return cfg


def graded(cfg: DictConfig, answer: str, text: str) -> dict[str, str]:
    """What is printed, by its name: what the reward reads in each, where it says so, its number, and its parts."""
    with importing():
        from dash_exp.rewards.base import close_rewards, correct

    where = named(cfg, "reward")
    with refusing(where, "cannot be made", "Correct its settings"):
        if getattr(get_object(cfg.reward._target_), "grades", None) == "programs":
            right = "Use python -m dash_exp.evaluate with data=mbpp or other data that has tests"
            raise UserError(where, "grades programs, by the tests of a problem", right)
    if "workers" in cfg.reward:
        cfg.reward.workers = 1
    reward = made(cfg, "reward")
    problem = Problem(id="this problem", prompt="", answer=answer)
    shown = {"answer": answer}
    try:
        right = "Try it with python -m dash_exp.evaluate on data that has what it needs, or correct it"
        with refusing(where, "cannot grade a text by an answer alone", right):
            if hasattr(reward, "hopeless") and (why := reward.hopeless([problem])[0]):
                shown["answer"] += f"   ({why})"
            if hasattr(reward, "answers"):
                found = reward.answers([text])[0]
                shown["read"] = "no answer" if found is None else found
            scores = reward([problem], [text])
            right_one = correct(scores, reward)[0]
    finally:
        close_rewards([reward])
    shown["reward"] = f"{scores.rewards[0]:g}   ({'correct' if right_one else 'not correct'})"
    shown |= {name: f"{values[0]:g}" for name, values in scores.components.items()}
    if scores.timeouts or scores.errors:
        shown["failed"] = "took too long" if scores.timeouts else "could not be graded"
    return shown
