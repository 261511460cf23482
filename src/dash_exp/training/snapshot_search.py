"""Which snapshot a run resumes from: the newest one that is undamaged and of its settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.results.problems import differ
from dash_exp.results.run_folder import same_numbers, snapshots
from dash_exp.settings import renamed
from dash_exp.training.snapshot_file import State, read, remove_unfinished
from dash_exp.training.snapshot_parts import Parts, damage

log = logging.getLogger(__name__)

# Of the module, in addition to its weights.
MODULE = ("policy_version", "accuracy", "accuracy_version", "evaluation", "right", "micro_tokens", "nonfinite_in_a_row")
DAMAGED = "%s is damaged (%s): the snapshot before it is used"
OTHER = "%s is of other settings or of another version of the program: the run starts from the beginning"


def found(
    run_dir: Path,
    config: str,
    problems: Mapping[str, str],
    anew: bool = False,
    ranks: Ranks = ALONE,
    in_parts: bool = False,
) -> tuple[State | None, Parts | None]:
    """The snapshot to resume from, on the first rank, and on every rank the parts from which it reads what it needs.

    Both are None without one; the second also where the first has all of the snapshot. With `in_parts` each rank looks at
    some of the parts, and one that is damaged counts for all ranks: every rank must call this. Else the first alone reads, and
    no other needs the disk. `config`, `problems`: see `Snapshots`. With `anew` there is none.
    """
    if ranks.first:
        remove_unfinished(run_dir)
    usable = _usable(run_dir, config, problems) if ranks.first and not anew else iter(())
    readers = ranks if in_parts else ALONE
    while True:
        file, state = next(usable, (run_dir, None))
        file, names = readers.from_first((file, state.get("parts", []) if state else []))
        if not names:
            return state, None
        if wrong := damage(file, names, readers):
            if ranks.first:
                log.warning(DAMAGED, file, wrong)
            continue
        parts = Parts(file, names, readers)
        if in_parts:
            return state, parts
        assert state is not None
        return parts.joined(state), None


def _usable(run_dir: Path, config: str, problems: Mapping[str, str]) -> Iterator[tuple[Path, State | None]]:
    """Snapshots, the newest first, whose parts may still be damaged; none after one of other settings."""
    for file in snapshots(run_dir):
        try:
            state = read(file)
        except Exception as error:  # torch raises many kinds, and each means the same
            log.warning(DAMAGED, file, first_line(str(error)))
            continue
        if not (_is_of(state["config"], config) and _of_this_version(state)):
            log.warning(OTHER, file)
            return
        if "problems" in state:  # earlier versions kept no digests
            _check_problems(state["problems"], problems, run_dir)
        yield file, state


def _check_problems(before: Mapping[str, str], problems: Mapping[str, str], run_dir: Path) -> None:
    """Raise UserError where the problems have changed since: the numbers before and after would not belong together."""
    if changed := differ(before, problems):
        raise UserError(
            ", ".join(changed),
            f"its problems have changed since the run in {run_dir} was stopped",
            "Put them back, or choose another name=...; resume=false starts again in its place",
        )


def _is_of(before: str, settings: str) -> bool:
    """Whether settings that a snapshot has, perhaps of an earlier version, give the numbers of these, both as JSON."""
    return same_numbers(json.loads(renamed.in_text(before))) == same_numbers(json.loads(settings))


def _of_this_version(state: State) -> bool:
    """Whether the snapshot has what this version of the program restores."""
    return set(state["module"]) == set(MODULE) and isinstance(state["random"], list)
