"""Run folders -> cells -> tables. Figures and conclusions are in `report/`.

A *cell* is one run of a sweep. Cells that differ only in their seed form an *arm*.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import whole_lines
from dash_exp.results import run_folder
from dash_exp.results.problems import Changed, changed_problems, sets_that_differ, told_apart
from dash_exp.results.run_folder import (
    SCHEME,
    check_result,
    is_run,
    overrides_by_key,
    read_result,
    read_sweep,
    read_yaml,
    wandb_id,
)

if TYPE_CHECKING:  # imported only when a table is needed, so that a mistake on the command line is reported at once
    import pandas as pd

GIVE = f"a sweep, as in multirun/NAME, run folders, or {SCHEME}ENTITY/PROJECT/GROUP"
STATUSES = (*run_folder.STATUSES, "waiting")

# The quantities that a curve can be drawn against, and their labels. None of them includes evaluation.
AXES = {
    "steps": "outer steps",
    "seconds": "seconds of training",
    "sampled_tokens": "tokens sampled",
    "optimizer_steps": "optimizer steps",
}


@dataclass(frozen=True)
class Cell:
    """One run, read from its folder.

    `folder`: the run folder. `overrides`: the overrides of the command line, by key. `status`: done, failed, stopped,
    unfinished (killed, or still running) or waiting (not started yet). `config`: the resolved configuration.
    `result`: the content of `result.json`. `changed`: the test problems that were others in other cells of the comparison.
    """

    folder: Path
    overrides: Mapping[str, str]
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    changed: Changed = frozenset()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`metrics.csv`: one row per outer step (row 0: the base model), with the columns of `AXES` added.

        The meaning of each column is in `dash_exp.core.metrics`. Empty if the file is missing or unreadable.
        """
        found = _csv(self.folder / "metrics.csv")
        whole = found.shape == found.select_dtypes("number").shape  # text instead of a number: a damaged file, or another one
        return with_axes(found if whole else found.iloc[:0, :0])

    @cached_property
    def problems(self) -> pd.DataFrame:
        """`problems.csv`: columns test, problem, base, final and digest.

        base and final are 1 if the greedy completion was correct before and after training, else 0. Empty until the run ends,
        and if the file is missing or unreadable. Names of tests and problems are text, whatever they look like.
        """
        names: dict[str, Any] = {"test": str, "problem": str}
        numbers: dict[str, Any] = {"base": float, "final": float}
        # An id such as NA or 007 stays as it is. Otherwise it would be another one in a file in which all ids are numbers.
        blank = {column: [""] for column in numbers}
        types = names | numbers | {"digest": str}
        found = _csv(self.folder / "problems.csv", dtype=types, keep_default_na=False, na_values=blank)
        return told_apart(found if {*names, *numbers} <= set(found) else found.iloc[:0, :0], self.changed)

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.name

    @property
    def seed(self) -> int | None:
        """The seed of the run; None if it is not recorded."""
        return self.config.get("seed", _whole(self.overrides.get("seed")))

    @property
    def error(self) -> str | None:
        """The error message of a failed run; None if there is none."""
        return self.result.get("error")


@dataclass(frozen=True)
class Results:
    """The cells of one comparison. Create it with `load`.

    `claims`: those of `sweep.json`, which may be newer than the cells; None where no such file says what is claimed.
    """

    cells: Sequence[Cell]
    claims: Sequence[Any] | None = None

    @cached_property
    def swept(self) -> list[str]:
        """The override keys in which the cells differ, without the seed."""
        keys = dict.fromkeys(key for cell in self.cells for key in cell.overrides)
        return [k for k in keys if k != "seed" and len({c.overrides.get(k) for c in self.cells}) > 1]

    @cached_property
    def arms(self) -> list[str]:
        """The names of the arms, in the order of the cells."""
        return list(dict.fromkeys(self.arm(cell) for cell in self.cells))

    def arm(self, cell: Cell) -> str:
        """The name of the arm of a cell: its values of the swept keys, as in `dash, kl.coef=0`."""
        values = {key: cell.overrides.get(key, "default") for key in self.swept}
        words = [value if key == "algo" else f"{key}={value}" for key, value in values.items()]
        return ", ".join(words) or str(cell.config.get("algo", {}).get("name", cell.name))

    def of_arm(self, arm: str, status: str | None = "done") -> list[Cell]:
        """The cells of an arm, ordered by seed: those with this status, or all of them if `status` is None."""
        found = [c for c in self.cells if self.arm(c) == arm and status in (None, c.status)]
        return sorted(found, key=lambda c: (c.seed is None, c.seed))

    @cached_property
    def study(self) -> dict[str, Any]:
        """The `study` section of the configuration (question, baseline, target, claims, paper); {} if there is none."""
        study = next((dict(cell.config["study"]) for cell in self.cells if cell.config.get("study")), {})
        return study if self.claims is None else study | {"claims": list(self.claims)}

    @cached_property
    def baseline(self) -> str | None:
        """The arm that the others are compared with: `study.baseline`, else the first arm. None without cells."""
        wanted = dict(o.partition("=")[::2] for o in self.study.get("baseline") or [])
        for cell in self.cells:
            if wanted and all(cell.overrides.get(k) == v for k, v in wanted.items()):
                return self.arm(cell)
        return self.arms[0] if self.arms else None

    @cached_property
    def tests(self) -> list[str]:
        """The names of the test sets that any cell was evaluated on; in_dist and out_dist come first."""
        found = (re.fullmatch(r"accuracy/([^/]+)/(?:base|final)", key) for cell in self.cells for key in cell.result)
        names = dict.fromkeys(match[1] for match in found if match)
        first = [name for name in ("in_dist", "out_dist") if name in names]
        return first + [name for name in names if name not in first]

    def baseline_of(self, arm: str, baseline: str) -> str:
        """The arm that `arm` is compared with.

        This is `baseline`, unless more keys are swept than `study.baseline` names. Then it is the baseline arm that equals
        `arm` in the other keys: for example, the DASH runs of the same model. An empty string if there is no such arm.
        """
        named = dict(o.partition("=")[::2] for o in self.study.get("baseline") or [])
        named = {key: value for key, value in named.items() if key in self.swept}
        if baseline != self.baseline or not named or set(named) == set(self.swept):
            return baseline
        like = next(cell for cell in self.cells if self.arm(cell) == arm)
        wanted = {key: like.overrides.get(key) for key in self.swept} | named
        return next((self.arm(c) for c in self.cells if all(c.overrides.get(k) == v for k, v in wanted.items())), "")

    def table(self) -> pd.DataFrame:
        """One row per cell: cell, arm, the swept keys, seed, status, error, and every number of `result.json`.

        The report writes this table as `cells.csv`.
        """
        import pandas as pd

        rows = []
        for cell in self.cells:
            row: dict[str, Any] = {"cell": cell.name, "arm": self.arm(cell)}
            row |= {key: cell.overrides.get(key) for key in self.swept if key not in row}
            row |= {"seed": cell.seed, "status": cell.status, "error": cell.error}
            row |= {k: v for k, v in cell.result.items() if k not in row}
            rows.append(row)
        return pd.DataFrame(rows)


def load(paths: Sequence[str | Path]) -> Results:
    """Load sweep folders, run folders, and runs in W&B (`wandb:ENTITY/PROJECT/GROUP` or `wandb:ENTITY/PROJECT`).

    All cells together are one comparison. A run that is found twice counts once. Raises UserError for a path without runs.
    """
    cells: dict[str | Path, Cell] = {}
    claims: list[Any] | None = None
    for path in paths:
        folders = from_wandb(str(path)) if str(path).startswith(SCHEME) else [Path(path).expanduser()]
        for folder in folders:
            if not folder.is_dir():
                raise UserError(str(path), "there is no such folder", f"Give {GIVE}")
            found = cells_of(folder)
            if not found:
                raise UserError(str(path), "contains no runs", f"Give {GIVE}")
            cells |= {wandb_id(cell.folder) or cell.folder.resolve(): cell for cell in found}
            if "claims" in (sweep := read_sweep(folder)):
                claims = claims or []
                claims += [claim for claim in sweep["claims"] or [] if claim not in claims]
    return compared(list(cells.values()), claims)


def compared(cells: Sequence[Cell], claims: Sequence[Any] | None = None) -> Results:
    """The cells as one comparison: each with the problems that have changed between them."""
    if any(name.startswith("data.tests.") for name in sets_that_differ([cell.result for cell in cells])):
        changed = changed_problems([cell.problems for cell in cells])
        cells = [replace(cell, changed=changed) for cell in cells]
    return Results(cells, claims)


def from_wandb(path: str) -> list[Path]:
    """Download the records of runs in W&B. Returns the folders."""
    from dash_exp.results.wandb_runs import download  # wandb is loaded only where it is used

    return download(path)


def cells_of(folder: Path) -> list[Cell]:
    """The cells of a sweep folder, or the single cell of a run folder.

    If the folder has a list of cells (`sweep.json`, written by the last start of the sweep), these are the cells in the list,
    in this order, including those that have not started. Otherwise they are all run folders inside.
    """
    if is_run(folder):
        return [load_cell(folder)]
    return [load_cell(p) if is_run(p) else Cell(p, overrides, "waiting") for p, overrides in folders_of(folder).items()]


def folders_of(folder: Path) -> dict[Path, dict[str, str]]:
    """The folders of a sweep's cells, with the overrides of its list; without a list the overrides are {}."""
    listed = {folder / cell["folder"]: overrides_by_key(cell["overrides"]) for cell in read_sweep(folder).get("cells", [])}
    return listed or {p: {} for p in unlisted(folder)}


def unlisted(folder: Path) -> list[Path]:
    """The run folders inside a sweep folder that are not in its list: runs of an earlier sweep with the same name."""
    listed = {cell["folder"] for cell in read_sweep(folder).get("cells", [])}
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and is_run(p) and p.name not in listed]


def load_cell(folder: Path) -> Cell:
    """One run folder, finished or not. Raises UserError if a file of it holds what no run writes."""
    result = read_result(folder)
    check_result(folder / "result.json", result)
    return Cell(
        folder=folder,
        overrides=overrides_by_key(read_yaml(folder / ".hydra" / "overrides.yaml", list) or []),
        status=result.get("status", "unfinished"),
        config=read_yaml(folder / "config.yaml", dict) or {},
        result=result,
    )


def with_axes(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of `metrics.csv` with the columns of `AXES` added, as far as they were logged."""
    sources = {"steps": "step", "seconds": "time/elapsed_s", "optimizer_steps": "policy/version"}
    found = {axis: metrics[source] for axis, source in sources.items() if source in metrics}
    if "tokens/sampled" in metrics:
        found["sampled_tokens"] = metrics["tokens/sampled"].fillna(0).cumsum()
    return metrics.assign(**found)


def _csv(file: Path, **options: Any) -> pd.DataFrame:
    """The complete rows of a CSV file. No rows if it is missing or unreadable, for example after a crash of the machine.

    `options` are those of `pandas.read_csv`.
    """
    import pandas as pd

    try:
        return pd.read_csv(io.StringIO(whole_lines(file.read_text(encoding="utf-8"))), **options)
    except (FileNotFoundError, ValueError):  # pandas: an empty or damaged file, or a wrong encoding
        return pd.DataFrame()


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
