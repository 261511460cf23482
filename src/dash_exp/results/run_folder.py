"""The files of run folders and sweep folders: their names, and how they are read and written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.settings import renamed
from dash_exp.settings.prompt import may_be_chat

ATTEMPTS_FILE = (
    "attempts"  # in a run folder: how often a process died there without an error message (`commands.sweep.run_cell`)
)
ENDING = "unfinished"  # the status in `result.json` while a trained run writes the last of its files
SNAPSHOTS = Path("checkpoints") / "resume"  # in a run folder
SNAPSHOT_NAME = re.compile(r"step_\d{5,}-[0-9a-f]{16}(\.pt)?")
# Of `rollout.sampler` with servers: where they are, and how weights get there. None of these changes a number.
OF_SERVERS = (
    *("servers", "colocate", "server_nodes", "gpus_per_server", "memory_share"),
    *("timeout_s", "give_up_s", "transfer", "weights_dir"),
)
SWEEP_FILE = "sweep.json"  # the cells of a sweep, written before the first one starts
SCHEME = "wandb:"  # marks runs in W&B
RESULT_FILE = "result.json"
ID_FILE = "wandb_id"  # in a run folder: the id of the run in W&B, and the last row that W&B may have
# What `result.json` holds: the status of the run, texts, and numbers by the beginning of their keys.
STATUSES = ("done", "failed", "stopped", "unfinished")  # unfinished: killed, or still running
TEXTS = ("error", "git", "device", "stopped_by", "watch/stopped_by", "taken_from")
NUMBERS = (
    *("accuracy/", "eval/", "time/", "tokens/", "completions/", "score/", "select/", "optimizer"),
    *("watch/", "steps", "sizes/"),
)
# The small files of a run folder that are enough to read the run again. They are uploaded to W&B with the run.
RECORD_FILES = ("config.yaml", ".hydra/overrides.yaml", "metrics.csv", RESULT_FILE, "problems.csv")


def wandb_id(folder: Path) -> str | None:
    """The W&B id of the run in this folder; None if it was never recorded in W&B."""
    file = folder / ID_FILE
    words = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return words[0] if words else None


def read_sweep(folder: Path) -> dict[str, Any]:
    """`sweep.json` of a sweep folder, with today's names of parts; {} where there is none. UserError if it is another file."""
    what = "Delete it: the next start of the sweep writes it again"
    try:
        found = json.loads(renamed.in_text((folder / SWEEP_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(str(folder / SWEEP_FILE), f"is not valid JSON ({error})", what) from error
    cells = found.get("cells", []) if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise UserError(str(folder / SWEEP_FILE), "does not list cells with their folder and overrides", what)
    if not isinstance(found.get("claims") or [], list):
        raise UserError(str(folder / SWEEP_FILE), "has claims that are no list", what)
    return found


def _is_cell(listed: Any) -> bool:
    if not isinstance(listed, dict) or not isinstance(listed.get("folder"), str):
        return False
    overrides = listed.get("overrides")
    return isinstance(overrides, list) and all(isinstance(override, str) for override in overrides)


def is_run(folder: Path) -> bool:
    """Whether a run has started in this folder."""
    return (folder / "config.yaml").is_file() or (folder / ".hydra" / "overrides.yaml").is_file()


def read_result(folder: Path) -> dict[str, Any]:
    """`result.json` of a run folder; {} if it is missing or incomplete."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def check_result(file: Path, result: Mapping[str, Any]) -> None:
    """Raise UserError if a value of this `result.json` is not of the kind that a run writes. Unknown keys may hold anything."""
    what = "Restore the file, or delete it: the cell then counts as unfinished"
    status = result.get("status", "unfinished")
    if status not in STATUSES:
        raise UserError(str(file), f"status is {json.dumps(status)}, not one of {', '.join(STATUSES)}", what)
    for key, value in result.items():
        wanted, name = (str, "text") if key in TEXTS else (int | float, "a number")
        known = key in TEXTS or key.startswith(NUMBERS)
        if known and value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise UserError(str(file), f"{key} is {json.dumps(value)[:60]}, not {name}", what)


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`, either completely or not at all."""
    write_whole(run_dir / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def same_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that may change when a run resumes.

    These are the watch, the trackers, when to resume and to write snapshots, the settings of `plan=true`, what the study asks,
    and the number of devices, which changes the numbers only by rounding.
    """
    other = ("watch", "logger", "resume", "resume_every", "plan_device", "plan_tokens")
    found = {k: v for k, v in as_earlier(without_questions(settings)).items() if k not in other}
    if isinstance(trainer := found.get("trainer"), Mapping):
        found["trainer"] = {k: v for k, v in trainer.items() if k not in ("devices", "num_nodes", "strategy")}
    return found


def without_questions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what a study asks, its baseline aside: questions, claims, targets and the paper's numbers can change
    without running anything again.
    """
    study = settings.get("study")
    return {**settings, "study": {"baseline": study.get("baseline")} if isinstance(study, Mapping) else study}


def as_earlier(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as those of an earlier version: without new ones, where they say what all such runs did, and without what
    changes no number: how many processes grade, which had another default, where sampling servers are, which weights are kept.
    """
    found = without_bare_prompt(settings)
    found.pop("checkpoints", None)
    rollout = found.get("rollout")
    if isinstance(rollout, Mapping) and isinstance(sampler := rollout.get("sampler"), Mapping) and "servers" in sampler:
        found["rollout"] = {**rollout, "sampler": {k: v for k, v in sampler.items() if k not in OF_SERVERS}}
    if isinstance(rule := found.get("select"), Mapping) and str(rule.get("_target_")).endswith(".selection.Uniform"):
        del found["select"]
    if isinstance(data := found.get("data"), Mapping) and data.get("limit") is None:
        found["data"] = {k: v for k, v in data.items() if k != "limit"}
    return _without_workers(found)


def _without_workers(settings: Any) -> Any:
    """The settings without `workers` of rewards."""
    if not isinstance(settings, Mapping):
        return settings
    is_reward = ".rewards." in str(settings.get("_target_"))
    return {k: _without_workers(v) for k, v in settings.items() if not (is_reward and k == "workers")}


def without_bare_prompt(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without how the model is asked, where that is by the problem's text alone: runs of an earlier version, which
    all did so, have no such settings.
    """
    form, model = settings.get("prompt"), settings.get("model")
    if not isinstance(form, Mapping) or not isinstance(model, Mapping):
        return dict(settings)
    if (
        may_be_chat(form, model)
        or form.get("text") != "{prompt}"
        or any(form.get(k) for k in ("system", "prefill", "few_shot", "stop"))
    ):
        return dict(settings)
    alone = {k: v for k, v in settings.items() if k != "prompt"}
    return alone | {"model": {k: v for k, v in model.items() if k != "instruct"}}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested settings with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def snapshots(folder: Path) -> list[Path]:
    """Snapshots that a stopped run can resume from, newest first: `step_00012-<digest>.pt`, the outer step and a SHA-256.

    One in parts is a folder, `step_00012-<digest>` (`training.snapshot_parts`).
    """
    names = [file for file in (folder / SNAPSHOTS).glob("step_*") if SNAPSHOT_NAME.fullmatch(file.name)]
    return sorted(names, key=lambda file: int(file.name.split("-")[0].removeprefix("step_")), reverse=True)


def remove_snapshots(folder: Path) -> None:
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)


def can_resume(folder: Path) -> bool:
    """Whether the same command would go on with what is in this folder."""
    return bool(snapshots(folder)) or read_result(folder).get("status") == ENDING


def overrides_by_key(overrides: Sequence[str]) -> dict[str, str]:
    """`["algo=dash", "+scale=paper"] -> {"algo": "dash", "scale": "paper"}`"""
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key: value.strip("'\"") for key, _, value in pairs}


def read_yaml(file: Path, kind: type) -> Any:
    """What the file holds, with today's names of parts; None where there is none of this kind."""
    try:
        text = renamed.in_text(file.read_text(encoding="utf-8"))
        read = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return read if isinstance(read, kind) else None
