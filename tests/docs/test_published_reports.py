"""The differences in the reports under docs/results, against the numbers of their cells."""

import csv

import pytest
from conftest import ROOT

from dash_exp.report.words import points, probability, span
from dash_exp.results import stats

REPORTS = sorted(ROOT.glob("docs/results/*/report.md"))
TESTS = {"in distribution": "in_dist", "out of distribution": "out_dist"}


def published(text):
    """(baseline, or base; its rows as columns by name) for each table of differences in a report."""
    baseline = next(line for line in text.splitlines() if line.startswith("## Differences from "))
    for table in text.split("\n\n"):
        lines = [
            [cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if line.startswith("|")
        ]
        if lines and "smallest effect" in lines[0]:
            rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
            arms = {row["arm"] for row in rows}
            name = baseline.removeprefix("## Differences from ").replace("\\", "")
            yield ("base" if name in {arm.replace("\\", "") for arm in arms} else name), rows


def computed(cells, baseline, rows):
    """The same rows, from the accuracies of the cells."""
    by_test = {}
    for row in rows:
        key = f"accuracy/{TESTS[row['test set']]}"
        arm = row["arm"].replace("\\", "")
        other, start = (arm, "base") if baseline == "base" else (baseline, "final")
        of = {c["seed"]: float(c[f"{key}/final"]) for c in cells if c["arm"] == arm}
        against = {c["seed"]: float(c[f"{key}/{start}"]) for c in cells if c["arm"] == other}
        by_test.setdefault(row["test set"], {})[row["arm"]] = [of[seed] - against[seed] for seed in of]
    for row in rows:
        arms = by_test[row["test set"]]
        corrected = stats.holm([stats.p_value(d) for d in arms.values()])  # None where every seed gave the same difference
        p = corrected[list(arms).index(row["arm"])]
        found = arms[row["arm"]]
        e = stats.mean_interval(found)
        smallest = stats.detectable(found, sum(p is not None for p in corrected))
        yield row | {
            "seeds": str(e.n),
            "difference": points(e.value),
            "over seeds": span(e, points),
            "p (Holm)": probability(p).replace("<", "&lt;"),
            "smallest effect": "–" if smallest is None else points(smallest).lstrip("+"),
        }


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_the_published_differences_are_those_of_the_cells(report):
    with report.with_name("cells.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    tables = list(published(report.read_text(encoding="utf-8")))
    assert len(tables) == 2
    for baseline, rows in tables:
        assert rows == list(computed(cells, baseline, rows))
