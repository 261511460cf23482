"""A rehearsal: each part that a configuration names does its work once on a few numbers, before anything is loaded.

A part of the user, or of another package, may take other arguments, give another shape, or need what this training loop does
not have. Otherwise that would be met after the first completions are sampled, in the part's own words.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dash_exp.algorithms.weighting import StepCounts
from dash_exp.commands.parts import refusing
from dash_exp.core.errors import UserError
from dash_exp.core.types import MicroBatch, Problem
from dash_exp.rewards.base import Reward, Scores
from dash_exp.training.objective import Objective, Optimization

ANOTHER = "Use another one, such as torch.optim.AdamW or schedule.name=linear, or correct its settings"
log = logging.getLogger(__name__)

SCHEDULED = 10_000  # outer steps of a schedule that are tried, at most


def scoring(advantage: Callable[..., Any], keep: Any, group_size: int, named: Callable[[str], str]) -> None:
    """Advantage and filter, on two groups of rewards 0 and 1, one of 0 and one of 1. `named`: the name of the part at a key."""
    rewards_PG = (torch.arange(2 * group_size) % 2).double().view(2, group_size)  # 64 bits, as in `training.scoring`
    rewards_PG = torch.cat([rewards_PG, torch.zeros_like(rewards_PG[:1]), torch.ones_like(rewards_PG[:1])])
    right = "Give a function of rewards_PG, (P, G) to (P, G)"
    with refusing(named("algo.advantage"), "does not work as an advantage", right), _unchanged(rewards_PG):
        advantages_PG = _shaped(advantage(rewards_PG), rewards_PG.shape)
    if not advantages_PG[:2].isfinite().all():
        raise UserError(named("algo.advantage"), "gives NaN or infinite advantages for rewards of 0 and 1", "Correct it")
    if not advantages_PG[2:].isfinite().all():
        raise UserError(
            named("algo.advantage"),
            "gives NaN or infinite advantages for a group whose rewards are all equal, and there will be such groups",
            "Return 0 for them: divide by the standard deviation plus a small number",
        )
    right = "Give a Filter (dash_exp.algorithms.filters): rewards_PG and advantages_PG to a mask, all (P, G)"
    with refusing(named("filter"), "does not work as a filter", right):
        with _unchanged(rewards_PG, advantages_PG):
            keep_PG = _shaped(keep(rewards_PG, advantages_PG), rewards_PG.shape)
        if keep_PG.dtype != torch.bool:
            raise TypeError(f"it gives {keep_PG.dtype} and not a mask of booleans")
        for name in ("refill_rounds", "recompute_advantages"):
            if not hasattr(keep, name):
                raise TypeError(f"it has no {name}, so it is no subclass of Filter")
        assert keep.refill_rounds >= 0
        assert keep.recompute_advantages in (True, False)


@contextmanager
def _unchanged(*given: Tensor) -> Iterator[None]:
    """Raise ValueError where a part writes into what it is given: the numbers that are recorded would change as well."""
    before = [tensor.clone() for tensor in given]
    yield
    if not all(map(torch.equal, before, given)):
        raise ValueError("it writes into its arguments, as x -= 1 and x.abs_() do: give a new tensor")


def selection(rule: Any, group_size: int, named: Callable[[str], str]) -> None:
    """The rule that selects prompts, on the rewards of two groups."""
    rewards_PG = (torch.arange(2 * group_size) % 3 % 2).double().view(2, group_size)
    right = "Give a Selection (dash_exp.algorithms.selection)"
    with refusing(named("select"), "does not work as a selection of prompts", right):
        rule.observe(list(zip("ab", rewards_PG, strict=True)))
        rule.restore(rule.state())
        _number(rule.chance("a"))
        if not 0 <= rule.chance("a") <= 1:
            raise ValueError(f"the chance that it gives a prompt is {rule.chance('a')}")
        if rule.first is not None:
            assert 1 <= rule.first < group_size
            assert rule.rounds >= 1
            assert rule.candidates(2, 0, 0) >= 1
        assert rule.beside(2) >= 0


def objective(objective: Objective, written: bool, named: Callable[[str], str]) -> None:
    """Loss, weighting, denominator and KL coefficient, on two completions of three tokens; `written`: by no policy."""
    mask_BT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    logprobs_BT = (-mask_BT).requires_grad_()
    old_BT = None if written else -mask_BT
    ids_BL = torch.zeros(2, 4, dtype=torch.long)
    batch = MicroBatch(ids_BL, torch.ones_like(ids_BL), mask_BT, torch.tensor([1.0, -1.0]), old_BT)
    right = "Give a function of logprobs_BT, old_logprobs_BT, advantages_B, mask_BT that returns a TokenLoss, (B, T)"
    with refusing(named("algo.loss"), "does not work as a loss", right):
        token_loss: object = objective.token_loss(logprobs_BT, batch)
        if not isinstance(token_loss, tuple):
            raise TypeError(f"it gives a {type(token_loss).__name__} and not a TokenLoss")
        loss_BT, clipped_BT = token_loss
        _shaped(loss_BT, mask_BT.shape)
        if clipped_BT is not None:
            _shaped(clipped_BT, mask_BT.shape)
        if not loss_BT.requires_grad:
            raise ValueError("it has no gradient")
    with refusing(named("algo.weighting"), "does not work as a weighting", "Give a function of mask_BT, (B, T) to (B, T)"):
        _shaped(objective.weighting(mask_BT), mask_BT.shape)
    right = "Give a function of StepCounts that returns a number"
    with refusing(named("algo.denominator"), "does not work as a denominator", right):
        _number(objective.denominator(StepCounts(2, 2, 5, 5)))
    right = "Give a Schedule (dash_exp.algorithms.kl): the outer step to a coefficient"
    with refusing(named("kl.schedule"), "does not work as a schedule of the KL coefficient", right):
        _number(objective.kl_coef(0))
        assert objective.kl_coef.always_zero in (True, False)
        assert callable(objective.kl_coef.observe)


def steps_alone(target: str | None, where: str) -> None:
    """Raise UserError for the name of a class whose `step` needs an argument, before its settings are looked at."""
    part = None
    with suppress(Exception):  # a name that does not exist is told by `parts`
        part = get_object(target) if target else None
    if isinstance(part, type) and hasattr(part, "step"):
        _takes_nothing(part.step, where, ANOTHER)


def optimization(how: Optimization, parameters: Sequence[Tensor], steps: int, named: Callable[[str], str]) -> None:
    """A step of the optimizer on these parameters, which it changes, and `steps` outer steps of the schedule."""
    where, right = named("optimizer"), ANOTHER
    with refusing(where, "does not work in this training loop", right):
        optimizer = how.optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"it gives a {type(optimizer).__name__} and not an optimizer")
        _takes_nothing(getattr(optimizer, "inner", optimizer).step, where, right)
        sum(parameter.float().sum() for parameter in parameters).backward()  # type: ignore[union-attr]
        optimizer.step()
    where, right = named("schedule"), ANOTHER
    with refusing(where, "does not work in this training loop", right):
        schedule = how.schedule(optimizer=optimizer)
        _takes_nothing(schedule.step, where, right)
        if not isinstance(schedule, LRScheduler):
            raise TypeError(f"it gives a {type(schedule).__name__} and not a schedule of torch")
        optimizer.step()  # of which torch wants one after the schedule was made
        for step in range(min(steps, SCHEDULED)):
            if any(not math.isfinite(lr) or lr < 0 for lr in schedule.get_last_lr()):
                raise ValueError(f"the learning rate of outer step {step + 1} is {schedule.get_last_lr()[0]}")
            schedule.step()


def reward(reward: Reward, problem: Problem, group_size: int, where: str) -> None:
    """The reward, on a group of completions of a problem: its solution or answer, and with more than one an empty one."""
    right = "Give a function of problems and texts that returns Scores (dash_exp.rewards.base), a number for each text"
    with refusing(where, "does not work as a reward", right):
        texts = [problem.solution or problem.answer or problem.prompt] * group_size
        texts[1:] = [*texts[2:], ""] if group_size > 1 else []
        scores = reward([problem] * group_size, texts)
        if not isinstance(scores, Scores):
            raise TypeError(f"it gives a {type(scores).__name__} and not Scores")
        named = {"rewards": scores.rewards, **scores.components}
        for name, values in named.items():
            if len(values) != group_size:
                raise ValueError(f"{name}: {len(values)} for {group_size} texts")
        wanted = {*getattr(reward, "components", ()), getattr(reward, "correct", None)} - {None}
        if missing := wanted - scores.components.keys():
            raise ValueError(f"its Scores have no component {min(missing)}")
    if not getattr(reward, "correct", None) and scores.rewards[0] > 1:
        log.warning(
            "%s: a right answer earns %s, but accuracy counts a reward of exactly 1. Give 1 for it, or a component that is 1 "
            "there, named by the attribute `correct`",
            where,
            f"{scores.rewards[0]:g}",
        )


def problems(given: Any, where: str) -> list[Problem]:
    """What a data set gave: a list of problems with an id each. Raises UserError for anything else."""
    right = "Give a function that returns a list of Problem (dash_exp.core.types)"
    with refusing(where, "does not work as a data set", right):
        found = list(given)
        if wrong := [p for p in found if not isinstance(p, Problem)]:
            raise TypeError(f"it gives a {type(wrong[0]).__name__} and not a Problem")
        if len({p.id for p in found}) < len(found):
            raise ValueError("two problems have the same id")
    return found


def _shaped(value: Any, shape: torch.Size) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"it gives a {type(value).__name__} and not a tensor")
    if value.shape != shape:
        raise ValueError(f"it gives the shape {tuple(value.shape)} where {tuple(shape)} is wanted")
    return value


def _number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"it gives a {type(value).__name__} and not a number")


def _takes_nothing(step: Callable[..., Any], where: str, right: str) -> None:
    """Raise UserError where `step` needs an argument: a closure that computes the loss again, or a metric."""
    parameters = [p for p in inspect.signature(step).parameters.values() if p.name != "self"]
    if needs := [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]:
        raise UserError(where, f"its step() needs {needs[0]}, which this training loop does not give", right)
