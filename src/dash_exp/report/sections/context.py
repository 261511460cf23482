"""What every section is built from, computed once for the whole report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dash_exp.report import comparison, figures
from dash_exp.report.comparison import BASE, Difference, Target
from dash_exp.report.document import Cell
from dash_exp.results.cells import Results


@dataclass(frozen=True)
class Context:
    """The results, the choices made for the report, and the differences. `looks`: colour and line style by arm.

    `live`: of a sweep that runs; curves then include cells that are not done, and are drawn against outer steps alone.
    """

    results: Results
    folder: Path
    baseline: str | None
    target: Target | None
    tests: list[str]
    looks: Mapping[str, figures.Style]
    live: bool = False

    @cached_property
    def against_baseline(self) -> dict[str, list[Difference]]:
        """By test set. Computed once, because the bootstrap takes time."""
        return {test: comparison.differences(self.results, str(self.baseline), test) for test in self.tests}

    @cached_property
    def against_base(self) -> dict[str, list[Difference]]:
        if self.baseline == BASE:
            return self.against_baseline
        return {test: comparison.differences(self.results, BASE, test) for test in self.tests}

    @cached_property
    def several_seeds(self) -> bool:
        """Whether any arm has more than one seed done. If not, there is nothing to average, and no interval over seeds."""
        return any(len(comparison.by_seed(self.results, arm)) > 1 for arm in self.results.arms)

    @property
    def mean_over_seeds(self) -> str:
        """What the label of an axis says of an average: ` (mean over seeds)`, or nothing for one seed."""
        return " (mean over seeds)" if self.several_seeds else ""

    def named(self, arm: str, text: str | None = None, detail: str = "") -> Cell:
        """A table cell with the colour and line of an arm. The text defaults to the name of the arm."""
        return Cell(arm if text is None else text, detail, *self.looks[arm])

    def baseline_of(self, arm: str) -> str:
        """The arm that this one is compared with; the arm itself if it is a baseline."""
        return self.results.baseline_of(arm, str(self.baseline))

    @property
    def baseline_name(self) -> str:
        """The baseline as captions name it. If arms have different baselines, the text says which one each arm has."""
        if self.baseline == BASE:
            return "the base model"
        if len({self.baseline_of(arm) for arm in self.results.arms}) == 1:
            return str(self.baseline)
        return f"{', '.join(self.results.study['baseline'])} with the same other settings"
