"""Arms of equal cost (`budget.match`): a cell stops where its baseline stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dash_exp.core.errors import UserError
from dash_exp.results.cells import cells_of
from dash_exp.results.run_folder import overrides_by_key

# The limit in `budget` that is set, and the quantity of the baseline's `result.json` that it is set to.
MATCHED = {"seconds": "time/elapsed_s", "sampled_tokens": "tokens/sampled", "optimizer_steps": "optimizer_steps"}


def check_alone(cfg: DictConfig) -> None:
    """Raise UserError for a setting that only a cell of a sweep can have."""
    if cfg.budget.match is not None:
        raise UserError(
            f"budget.match={cfg.budget.match}",
            "stops an arm of a sweep where the baseline stopped, and this is a single run",
            "Make it a sweep (-m), or give a limit such as budget.seconds=100",
        )


def with_matched_budget(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration with the limit that the baseline of this cell reached, where `budget.match` asks for it."""
    wanted = wanted_baseline(cfg, overrides_by_key(overrides))
    if wanted is None:
        return cfg
    done = [c for c in cells_of(run_dir.parent) if c.status == "done" and dict(c.overrides) == wanted]
    if not done:
        raise UserError(
            f"budget.match={cfg.budget.match}",
            f"the baseline {','.join(f'{k}={v}' for k, v in wanted.items())} is not done",
            "Give the same command again when it is done",
        )
    cfg = cfg.copy()
    cfg.budget[cfg.budget.match] = done[0].result[MATCHED[cfg.budget.match]]
    return cfg


def wanted_baseline(cfg: DictConfig, overrides: dict[str, str]) -> dict[str, str] | None:
    """The overrides of the baseline of a cell; None where the cell is a baseline itself, or nothing is matched."""
    if cfg.budget.match is None:
        return None
    baseline = overrides_by_key(list(cfg.study.baseline))
    wanted = overrides | baseline
    return None if wanted == overrides else wanted
