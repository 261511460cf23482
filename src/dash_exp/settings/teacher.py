"""The teacher that writes traces for algo=sft_m."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import flags, number, numbers, texts

SECTIONS = "teacher"


def values(cfg: DictConfig) -> None:
    texts(cfg, "teacher.path teacher.tokenizer teacher.file")
    texts(cfg, "teacher.template", lines=True)
    flags(cfg, "teacher.chat")
    numbers(cfg, "teacher.tries teacher.max_tokens", whole=True, least=1)
    number(cfg, "teacher.seed", whole=True, least=0)
    number(cfg, "teacher.temperature", least=0)


def relations(cfg: DictConfig) -> None:
    if "teacher" not in (cfg.algo.get("train_sampler") or ()):
        return
    if "{prompt}" not in cfg.teacher.template:
        raise UserError(f"teacher.template={cfg.teacher.template}", "has no place for the problem", "Put {prompt} into it")
    if cfg.teacher.temperature == 0 and cfg.teacher.tries > 1:
        raise UserError(
            f"teacher.tries={cfg.teacher.tries}",
            "makes no difference at temperature 0, where every try gives the same trace",
            "Use teacher.tries=1, or a teacher.temperature above 0",
        )
