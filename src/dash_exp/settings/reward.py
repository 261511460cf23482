"""Rewards: their workers, time limits and models."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.settings.checks import flags, number, numbers, texts

SECTIONS = "reward"


def values(cfg: DictConfig) -> None:
    texts(cfg, "reward.path")
    flags(cfg, "reward.chat reward.squash reward.partial")
    numbers(cfg, "reward.processes reward.max_tokens", whole=True, least=1)
    number(cfg, "reward.accept_above")
    parts = [f"reward.parts.{name}" for name in cfg.reward.parts] if isinstance(cfg.reward.get("parts"), DictConfig) else []
    for key in ("reward", *parts):
        number(cfg, f"{key}.timeout_s", above=0)
        number(cfg, f"{key}.workers", whole=True, least=1)
        number(cfg, f"{key}.memory_mb", whole=True, least=64)
