"""Run folders -> cells -> tables. What is drawn and concluded from them is in `report/`.

A *cell* is one run of a sweep. Cells that differ in their seed alone form an *arm*.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dash_exp.core.errors import UserError
from dash_exp.core.metrics import whole_lines
from dash_exp.results.run_folder import SCHEME, is_run, overrides_by_key, read_result, read_sweep, read_yaml, wandb_id

if TYPE_CHECKING:  # loaded when a table is asked for: a command line with a mistake in it should not wait for it
    import pandas as pd

GIVE = f"a sweep, as in multirun/NAME, run folders, or {SCHEME}ENTITY/PROJECT/GROUP"
STATUSES = ("done", "failed", "stopped", "unfinished", "waiting")  # unfinished: killed, or still running

# The quantities that a curve can be drawn against, and what they are called. Evaluation is in none of them.
AXES = {
    "steps": "outer steps",
    "seconds": "seconds of training",
    "sampled_tokens": "tokens sampled",
    "optimizer_steps": "optimizer steps",
}


@dataclass(frozen=True)
class Cell:
    """One run, as its folder has it. `overrides` are those of the command line, by key; `config` is resolved."""

    folder: Path
    overrides: Mapping[str, str]
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per outer step (row 0: the base model) with the columns of `metrics.csv` and of `AXES`; empty without rows."""
        return with_axes(_csv(self.folder / "metrics.csv"))

    @cached_property
    def problems(self) -> pd.DataFrame:
        """Columns test, problem, base and final: whether the greedy completion was right (0 or 1). Empty before the end."""
        return _csv(self.folder / "problems.csv")

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int | None:
        return self.config.get("seed", _whole(self.overrides.get("seed")))

    @property
    def error(self) -> str | None:
        return self.result.get("error")


@dataclass(frozen=True)
class Results:
    """The cells of one comparison. `swept` are the override keys in which they differ, the seed aside."""

    cells: Sequence[Cell]

    @cached_property
    def swept(self) -> list[str]:
        keys = dict.fromkeys(key for cell in self.cells for key in cell.overrides)
        return [k for k in keys if k != "seed" and len({c.overrides.get(k) for c in self.cells}) > 1]

    @cached_property
    def arms(self) -> list[str]:
        """Their names, in the order in which the cells name them."""
        return list(dict.fromkeys(self.arm(cell) for cell in self.cells))

    def arm(self, cell: Cell) -> str:
        """`dash, kl.coef=0`: what tells this cell from others, the seed aside."""
        values = {key: cell.overrides.get(key, "default") for key in self.swept}
        words = [value if key == "algo" else f"{key}={value}" for key, value in values.items()]
        return ", ".join(words) or str(cell.config.get("algo", {}).get("name", cell.name))

    def of_arm(self, arm: str, status: str | None = "done") -> list[Cell]:
        """The cells of an arm, by seed; those of one status, or all."""
        found = [c for c in self.cells if self.arm(c) == arm and status in (None, c.status)]
        return sorted(found, key=lambda c: (c.seed is None, c.seed))

    @cached_property
    def study(self) -> dict[str, Any]:
        """The `study` section of the configuration: question, baseline, target, paper."""
        for cell in self.cells:
            if cell.config.get("study"):
                return dict(cell.config["study"])
        return {}

    @cached_property
    def baseline(self) -> str | None:
        """The arm that the others are compared with: `study.baseline`, or else the first one. None without cells."""
        wanted = dict(o.partition("=")[::2] for o in self.study.get("baseline") or [])
        for cell in self.cells:
            if wanted and all(cell.overrides.get(k) == v for k, v in wanted.items()):
                return self.arm(cell)
        return self.arms[0] if self.arms else None

    @cached_property
    def tests(self) -> list[str]:
        """The test sets that any cell was evaluated on, in_dist and out_dist first."""
        found = (re.fullmatch(r"accuracy/([^/]+)/(?:base|final)", key) for cell in self.cells for key in cell.result)
        names = dict.fromkeys(match[1] for match in found if match)
        first = [name for name in ("in_dist", "out_dist") if name in names]
        return first + [name for name in names if name not in first]

    def baseline_of(self, arm: str, baseline: str) -> str:
        """The arm that `arm` is compared with: `baseline`; but where more is swept than the keys of `study.baseline`, the
        one that is the same as `arm` in the rest, as the DASH runs of the same model. Empty where there is none.
        """
        named = dict(o.partition("=")[::2] for o in self.study.get("baseline") or [])
        named = {key: value for key, value in named.items() if key in self.swept}
        if baseline != self.baseline or not named or set(named) == set(self.swept):
            return baseline
        like = next(cell for cell in self.cells if self.arm(cell) == arm)
        wanted = {key: like.overrides.get(key) for key in self.swept} | named
        return next((self.arm(c) for c in self.cells if all(c.overrides.get(k) == v for k, v in wanted.items())), "")

    def table(self) -> pd.DataFrame:
        """`cells.csv`: a row per cell with arm, swept keys, seed, status and error, and every number of `result.json`."""
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
    """The cells of sweep folders, run folders and runs in W&B (`wandb:ENTITY/PROJECT/GROUP`, or `wandb:ENTITY/PROJECT`).

    A run that is met twice comes once. Raises UserError for a path that holds no runs.
    """
    cells: dict[str | Path, Cell] = {}
    for path in paths:
        folders = from_wandb(str(path)) if str(path).startswith(SCHEME) else [Path(path).expanduser()]
        for folder in folders:
            if not folder.is_dir():
                raise UserError(str(path), "there is no such folder", f"Give {GIVE}")
            found = cells_of(folder)
            if not found:
                raise UserError(str(path), "holds no runs", f"Give {GIVE}")
            cells |= {wandb_id(cell.folder) or cell.folder.resolve(): cell for cell in found}
    return Results(list(cells.values()))


def from_wandb(path: str) -> list[Path]:
    """Folders with the records of runs in W&B, downloaded."""
    from dash_exp.results.wandb_runs import download  # wandb is loaded only where it is used

    return download(path)


def cells_of(folder: Path) -> list[Cell]:
    """The cells of a sweep folder, or the one of a run folder.

    They are those of the sweep's list, which its last start wrote, in its order and with those that have not begun; of a
    folder without a list, all run folders in it.
    """
    if is_run(folder):
        return [load_cell(folder)]
    listed = {folder / cell["folder"]: overrides_by_key(cell["overrides"]) for cell in read_sweep(folder).get("cells", [])}
    found = listed or dict.fromkeys(unlisted(folder))
    return [load_cell(p) if is_run(p) else Cell(p, listed[p], "waiting") for p in found]


def unlisted(folder: Path) -> list[Path]:
    """The run folders inside a sweep's folder that are not in its list: those of an earlier sweep of the same name."""
    listed = {cell["folder"] for cell in read_sweep(folder).get("cells", [])}
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and is_run(p) and p.name not in listed]


def load_cell(folder: Path) -> Cell:
    """One run folder, finished or not."""
    result = read_result(folder)
    return Cell(
        folder=folder,
        overrides=overrides_by_key(read_yaml(folder / ".hydra" / "overrides.yaml", list) or []),
        status=result.get("status", "unfinished"),
        config=read_yaml(folder / "config.yaml", dict) or {},
        result=result,
    )


def with_axes(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of `metrics.csv` with the columns of `AXES` added, those of them that were logged."""
    sources = {"steps": "step", "seconds": "time/elapsed_s", "optimizer_steps": "policy/version"}
    found = {axis: metrics[source] for axis, source in sources.items() if source in metrics}
    if "tokens/sampled" in metrics:
        found["sampled_tokens"] = metrics["tokens/sampled"].fillna(0).cumsum()
    return metrics.assign(**found)


def _csv(file: Path) -> pd.DataFrame:
    """Its rows, the whole ones; none where it is not there or cannot be read, as after a crash of the machine."""
    import pandas as pd

    try:
        return pd.read_csv(io.StringIO(whole_lines(file.read_text(encoding="utf-8"))))
    except (FileNotFoundError, ValueError):  # that of pandas for an empty or torn file, and of a wrong encoding
        return pd.DataFrame()


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
