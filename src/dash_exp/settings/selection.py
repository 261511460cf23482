"""The rule that selects prompts (select): its settings, and what it can be used with."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.algorithm import in_several_calls
from dash_exp.settings.checks import number, numbers

SECTIONS = "select"
BY_SIGNAL = (".selection.GRESO", ".selection.Screen")  # rules that leave out groups without a signal
NOT_RELATIVE = (".advantages.raw", ".advantages.right", ".advantages.constant")


def values(cfg: DictConfig) -> None:
    number(cfg, "select.first", whole=True, least=2, why="the reward of one completion differs from no other")
    numbers(cfg, "select.wide select.rounds", whole=True, least=1)
    why = "a prompt that was once skipped must be able to come again, and one without a signal to be skipped"
    numbers(cfg, "select.explore_easy select.explore_hard", least=0.05, most=0.95, why=why)
    numbers(cfg, "select.target_easy select.target_hard", least=0, most=1, why="it is a share of the groups of an outer step")
    number(cfg, "select.step", least=0, below=1)
    number(cfg, "select.right")


def relations(cfg: DictConfig) -> None:
    target = str(cfg.select.get("_target_"))
    if not target.endswith(BY_SIGNAL):
        return
    where = f"select._target_={target}"
    if cfg.algo.train_sampler or cfg.algo.group_size < 2:
        raise UserError(
            where,
            "looks for prompts whose rewards differ, and those of written traces, or of a group of one, never do",
            "Use select=uniform",
        )
    if str(cfg.algo.advantage._target_).endswith(NOT_RELATIVE):
        raise UserError(
            where,
            f"leaves out groups of equal rewards, which algo.advantage._target_={cfg.algo.advantage._target_} learns from",
            "Use select=uniform, or an advantage that compares the completions of a group",
        )
    if target.endswith(".Screen"):
        _screen(cfg)


def _screen(cfg: DictConfig) -> None:
    if cfg.select.first >= cfg.algo.group_size:
        raise UserError(
            f"select.first={cfg.select.first}",
            f"leaves nothing of a group of {cfg.algo.group_size} to sample after the screening",
            "Lower it, or raise batch.group_size",
        )
    if in_several_calls(cfg):
        raise UserError(
            "select=screen",
            f"looks for the prompts of a whole outer step, but batch.sample_prompts={cfg.batch.sample_prompts} cuts it into "
            "sampling calls",
            "Use batch=preemptive, or select=greso",
        )
    if cfg.filter.get("refill_rounds"):
        raise UserError(
            f"filter.refill_rounds={cfg.filter.refill_rounds}",
            "samples other prompts for groups without a signal, which select=screen has done by then",
            "Use filter.refill_rounds=0",
        )
