"""The files of run folders and sweep folders: their names, and how they are read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole

ATTEMPTS_FILE = "attempts"  # of a run folder: how often a process ended in it without a word (`sweep.attempt`)
SNAPSHOTS = Path("checkpoints") / "resume"  # of a run folder
SNAPSHOT_NAME = re.compile(r"step_\d{5,}-[0-9a-f]{16}\.pt")
SWEEP_FILE = "sweep.json"  # the cells of a sweep, written before the first one starts
SCHEME = "wandb:"  # before the place of runs in W&B
ID_FILE = "wandb_id"  # of a run folder: the id of its run in W&B, and the last row that W&B may have (`logger.identity`)
# What of a run folder is enough to read the run back: small files. W&B keeps them with the run.
RECORD_FILES = ("config.yaml", ".hydra/overrides.yaml", "metrics.csv", "result.json", "problems.csv")


def wandb_id(folder: Path) -> str | None:
    """The id in W&B of the run in this folder; None where it was never recorded there."""
    file = folder / ID_FILE
    words = file.read_text().split() if file.is_file() else []
    return words[0] if words else None


def read_sweep(folder: Path) -> dict[str, Any]:
    """`sweep.json` of a sweep folder; {} where there is none."""
    try:
        return json.loads((folder / SWEEP_FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            str(folder / SWEEP_FILE), f"is not valid JSON ({error})", "Remove it: the next sweep writes it"
        ) from error


def is_run(folder: Path) -> bool:
    """Whether a run began there."""
    return (folder / "config.yaml").is_file() or (folder / ".hydra" / "overrides.yaml").is_file()


def read_result(folder: Path) -> dict[str, Any]:
    """`result.json` of a run folder; {} where there is none or it is torn."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """`result.json`, whole or not at all."""
    write_whole(run_dir / "result.json", json.dumps(result, indent=2) + "\n")


def same_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that may change when a run goes on: how it is watched, what is kept to go on from, what its
    plan was asked, and the number of devices, which changes numbers by rounding errors alone.
    """
    other = ("watch", "resume", "resume_every", "plan_device", "plan_tokens")
    found = {k: v for k, v in settings.items() if k not in other}
    if isinstance(trainer := found.get("trainer"), Mapping):
        found["trainer"] = {k: v for k, v in trainer.items() if k not in ("devices", "num_nodes", "strategy")}
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested settings with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def snapshots(folder: Path) -> list[Path]:
    """What a run that was stopped can go on from, newest first: `step_00012-<digest>.pt`, the outer step and a SHA-256."""
    names = [file for file in (folder / SNAPSHOTS).glob("step_*.pt") if SNAPSHOT_NAME.fullmatch(file.name)]
    return sorted(names, key=lambda file: int(file.name.split("-")[0].removeprefix("step_")), reverse=True)


def overrides_by_key(overrides: Sequence[str]) -> dict[str, str]:
    """`["algo=dash", "+scale=paper"] -> {"algo": "dash", "scale": "paper"}`"""
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key: value.strip("'\"") for key, _, value in pairs}


def read_yaml(file: Path, kind: type) -> Any:
    """What the file holds; None where it is not there, cannot be read or holds something of another kind."""
    try:
        read = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return read if isinstance(read, kind) else None
