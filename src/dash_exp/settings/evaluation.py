"""Evaluation during a run: how often, and the completions sampled for pass@k."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import number, numbers

SECTIONS = "eval"


def values(cfg: DictConfig) -> None:
    numbers(cfg, "eval.every eval.prompts", whole=True, least=1)
    number(cfg, "eval.limit", whole=True, least=1, optional=True)
    number(cfg, "eval.n", whole=True, least=0)
    number(cfg, "eval.temperature", above=0, why="at 0 all completions of a problem would be the greedy one")
    number(cfg, "eval.top_p", above=0, most=1, why="it is a share of the probability, 1 for all of it")
    if not isinstance(cfg.eval.k, Sequence) or isinstance(cfg.eval.k, str):
        raise UserError(f"eval.k={cfg.eval.k}", "is not a list", "Write eval.k=[1,8]")


def relations(cfg: DictConfig) -> None:
    for k in cfg.eval.k:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= cfg.eval.n:
            raise UserError(
                f"eval.k={list(cfg.eval.k)}",
                f"pass@{k} is not defined with eval.n={cfg.eval.n} completions of each problem",
                "Use whole numbers from 1 to eval.n, and raise eval.n",
            )
    if len(set(cfg.eval.k)) < len(cfg.eval.k):
        raise UserError(f"eval.k={list(cfg.eval.k)}", "has a number twice", "Remove one of them")
