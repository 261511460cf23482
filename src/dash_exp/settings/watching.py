"""The checks of a run while it trains (watch): their policies and limits. The checks themselves are `core.watch`."""

from __future__ import annotations

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.core.watch import CHECKS, POLICIES
from dash_exp.settings.checks import known, number, shown

SECTIONS = ""  # runs of an earlier version do not have `watch`


def values(cfg: DictConfig) -> None:
    for name, settings in (cfg.get("watch") or {}).items():
        if name not in CHECKS:
            raise UserError(f"watch.{name}", "is not a check", f"Use one of {', '.join(CHECKS)}")
        check = CHECKS[str(name)]
        if not isinstance(settings, DictConfig):
            raise UserError(
                f"watch.{name}={shown(settings)}",
                "is not a section of settings",
                f"Write watch.{name}.policy={shown(settings)}",
            )
        unknown = set(settings) - {"policy", *check.limits}
        if unknown:
            has = ", ".join(["policy", *check.limits])
            raise UserError(f"watch.{name}.{min(unknown)}", "there is no such setting", f"This check has {has}")
        if settings.get("policy") is not False:  # YAML's word for off
            known(cfg, f"watch.{name}.policy", list(POLICIES))
        if settings.get("policy") == "skip_step" and not check.can_skip:
            raise UserError(
                f"watch.{name}.policy=skip_step",
                "would keep the policy in the state that the check reports",
                "Use off, warn or stop",
            )
        for key, limit in check.limits.items():
            number(
                cfg,
                f"watch.{name}.{key}",
                whole=limit.whole,
                least=limit.least,
                above=limit.above,
                below=limit.under,
                optional=limit.optional,
            )
