"""The run as a whole: its length, seed, name and record."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.core.pace import FORMS, Pace
from dash_exp.settings.checks import flags, known, number, numbers, shown, texts

SECTIONS = ""
CHECKPOINTS = ("last", "best")  # that a run may keep, in its folder `checkpoints`
DEVICES = ("a100", "h100", "h200")  # that plan_device can name


def values(cfg: DictConfig) -> None:
    numbers(cfg, "steps table_rows completions_every", whole=True, least=1)
    numbers(cfg, "plan_tokens", whole=True, least=1, optional=True)
    _pace(cfg, "resume_every")
    number(cfg, "seed", whole=True, least=0, below=2**32, why="numpy takes no other seed")
    texts(cfg, "name objective")
    flags(cfg, "resume plan")
    kept = cfg.get("checkpoints", CHECKPOINTS)  # which settings of an earlier version do not have
    if not isinstance(kept, Sequence) or isinstance(kept, str) or any(each not in CHECKPOINTS for each in kept):
        wrong = f"is not a list of {' and '.join(CHECKPOINTS)}"
        raise UserError(f"checkpoints={shown(kept)}", wrong, "Write checkpoints=[last,best], [last], [best] or []")
    if cfg.get("plan_device") is not None:
        known(cfg, "plan_device", DEVICES)
    if "/" in cfg.name or cfg.name.startswith((".", "~")):
        raise UserError(f"name={cfg.name}", "is not a folder's name", "Write one without / that does not start with . or ~")


def _pace(cfg: DictConfig, key: str) -> None:
    """`key` must say how often (see `pace.FORMS`), or be null."""
    try:
        Pace.read(cfg.get(key))
    except ValueError:
        raise UserError(f"{key}={shown(cfg.get(key))}", "does not say how often", f"Write {FORMS}, or null") from None
