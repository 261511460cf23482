"""What a sweep asks (study) and where its runs stop (budget). What it claims is in `claims`."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings import claims
from dash_exp.settings.checks import known, numbers

SECTIONS = "budget study"


def values(cfg: DictConfig) -> None:
    numbers(cfg, "budget.seconds", above=0, optional=True)
    numbers(cfg, "budget.sampled_tokens budget.optimizer_steps", whole=True, least=1, optional=True)
    numbers(cfg, "study.target", above=0, most=1, optional=True, why="it is an accuracy, a fraction such as 0.9")
    if cfg.budget.match is not None:
        known(cfg, "budget.match", ["seconds", "sampled_tokens", "optimizer_steps"])
    baseline = cfg.study.baseline
    if baseline is not None and not (isinstance(baseline, Sequence) and not isinstance(baseline, str)):
        raise UserError(
            f"study.baseline={baseline}", "is not a list", "Write the arm's overrides, as in study.baseline=[algo=grpo]"
        )
    for override in baseline or ():
        if not isinstance(override, str) or "=" not in override:
            raise UserError(f"study.baseline={baseline}", f"{override} is not an override", "Write them as in [algo=grpo]")


def relations(cfg: DictConfig) -> None:
    if cfg.budget.match is not None and not cfg.study.baseline:
        raise UserError(
            f"budget.match={cfg.budget.match}",
            "stops the arms of a sweep where its baseline stopped, and there is no baseline",
            "Name it, as in study.baseline=['algo=dash']",
        )
    claims.check(cfg)
