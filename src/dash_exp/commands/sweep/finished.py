"""Whether a folder already holds the run that would be written there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.results.cells import load_cell
from dash_exp.results.problems import differ, recorded
from dash_exp.results.run_folder import as_earlier, can_resume, flat, read_result, same_numbers, without_questions


def finished(run_dir: Path, cfg: DictConfig) -> bool:
    """Whether `run_dir` holds exactly this run, done. Another finished run there is never overwritten: UserError."""
    if read_result(run_dir).get("status") != "done":
        _check_stopped(run_dir, cfg)
        return False
    before = load_cell(run_dir).config
    if not before:
        return False  # the file is damaged, so it is not known what was done
    if identity(OmegaConf.create(dict(before))) != identity(cfg):
        raise UserError(str(run_dir), "holds a finished run with other settings", "Choose another name=..., or remove it")
    return True


def with_other_problems(run_dir: Path, cfg: DictConfig, digests: Mapping[str, str]) -> list[str]:
    """One message for each set of problems that done cells with the same data settings beside `run_dir` had otherwise.

    `digests`: those of this run. Cells of earlier versions recorded none.
    """
    others: dict[str, int] = {}
    for result_file in run_dir.parent.glob("*/result.json"):
        result = read_result(result_file.parent)
        names = differ(recorded(result), digests) if result.get("status") == "done" else []
        if names and _data(load_cell(result_file.parent).config) == _data(OmegaConf.to_container(cfg, resolve=True)):
            others |= {name: others.get(name, 0) + 1 for name in names}
    return [
        f"{name}: {n} done cell(s) in {run_dir.parent} had other problems, so the data has changed since. "
        "Differences leave out what has changed; another name=... starts a sweep anew"
        for name, n in others.items()
    ]


def _data(settings: Any) -> tuple[Any, Any]:
    """The settings that choose the problems."""
    return as_earlier(settings).get("data"), (settings.get("eval") or {}).get("limit")


def _check_stopped(run_dir: Path, cfg: DictConfig) -> None:
    """Raise UserError where a stopped run of other settings could be resumed, which this run would overwrite."""
    before = load_cell(run_dir).config
    if cfg.get("resume") and before and can_resume(run_dir):
        was, now = (dict(flat(same_numbers(identity(c)))) for c in (OmegaConf.create(dict(before)), cfg))
        differ = differences(now, was)
        if differ:
            raise UserError(
                str(run_dir),
                f"holds a stopped run with other settings that can be resumed ({'; '.join(differ[:3])})",
                "Give the settings of that run, or choose another name=...; resume=false starts again in its place",
            )


def differences(these: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """`steps=20, not 30` for each setting that differs. A missing one is as good as null: an earlier version had none."""
    keys = {**these, **others}
    return [f"{key}={these.get(key)}, not {others.get(key)}" for key in keys if these.get(key) != others.get(key)]


def identity(cfg: Any) -> dict[str, Any]:
    """What identifies a run: all settings but the limit that a matched budget got, the trackers, how the run resumes, and what
    is asked.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    match = (settings.get("budget") or {}).get("match")
    if match is not None:
        settings["budget"] = {"match": match}
    found = as_earlier(without_questions(settings))
    return {k: v for k, v in found.items() if k not in ("logger", "resume", "resume_every")}
