"""Refuses settings that make no sense, before anything is loaded. What is checked stands in one file per subject."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from dash_exp.core.errors import UserError
from dash_exp.settings import (
    algorithm,
    credentials,
    data,
    devices,
    evaluation,
    model,
    names,
    optimizer,
    prompt,
    reward,
    run,
    sampling,
    selection,
    study,
    targets,
    teacher,
    tracker,
    watching,
)
from dash_exp.settings.checks import sections

# Each has SECTIONS (keys that must have settings below them) and `values` (of single settings).
SUBJECTS = (
    *(run, tracker, study, evaluation, optimizer, model, devices),
    *(data, prompt, reward, sampling, teacher, algorithm, selection, watching),
)
# Those that also have `relations`: settings that cannot be used together.
RELATED = (study, evaluation, optimizer, model, devices, data, prompt, teacher, algorithm, selection, sampling)


def validate(cfg: DictConfig, earlier: bool = False) -> None:
    """Raise UserError for the first setting that cannot be used. `cfg` stays as it is.

    `earlier`: the settings are those of a run, maybe of an earlier version, which may have had others.
    """
    if not earlier:
        names.check(cfg)
    settings = _resolved(cfg)
    credentials.refuse_settings(settings)
    for subject in SUBJECTS:
        subject.values(cfg)
    if not earlier:
        tracker.installed(cfg)
    for subject in RELATED:  # they may read any setting, whose value is known to be good now
        subject.relations(cfg)
    targets.check(settings)
    targets.check_argument(settings, "algo.loss", "logprobs_BT")
    targets.check_argument(settings, "algo.advantage", "rewards_PG")


def _resolved(cfg: DictConfig) -> Any:
    """The settings as nested dicts with all references resolved."""
    try:
        for subject in SUBJECTS:
            sections(cfg, subject.SECTIONS)
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        pointed_at = isinstance(error, InterpolationToMissingValueError)
        missing = str(error).splitlines()[0].rpartition(": ")[2] if pointed_at else str(error.full_key)
        raise UserError(missing, "is not given", f"Add {missing}=... to the command") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error.full_key or "configuration"), str(error).splitlines()[0], "Fix the reference") from error
