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
    start, baseline = "Difference in percentage points from ", ""
    for part in text.split("\n\n"):
        if part.startswith(start):
            baseline = part.removeprefix(start).partition(", paired by seed")[0].replace("\\", "")
        lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines() if line.startswith("|")]
        if lines and "difference" in lines[0]:
            rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
            yield ("base" if baseline == "the base model" else baseline), rows


def computed(cells, baseline, rows):
    """The same rows, from the accuracies of the cells that are done. With one seed there are fewer columns."""
    by_test = {}
    for row in rows:
        key = f"accuracy/{TESTS.get(row['test set'], row['test set'])}"
        arm = row["arm"].replace("\\", "")
        other, start = (arm, "base") if baseline == "base" else (baseline, "final")
        done = [c for c in cells if c["status"] == "done"]
        of = {c["seed"]: float(c[f"{key}/final"]) for c in done if c["arm"] == arm}
        against = {c["seed"]: float(c[f"{key}/{start}"]) for c in done if c["arm"] == other}
        by_test.setdefault(row["test set"], {})[row["arm"]] = [of[seed] - against[seed] for seed in of if seed in against]
    for row in rows:
        arms = by_test[row["test set"]]
        corrected = stats.holm([stats.p_value(d) for d in arms.values()])  # None where every seed gave the same difference
        p = corrected[list(arms).index(row["arm"])]
        found = arms[row["arm"]]
        e = stats.mean_interval(found)
        smallest = stats.detectable(found, sum(p is not None for p in corrected))
        numbers = {
            "seeds": str(len(found)),
            "difference": "–" if e is None else points(e.value),
            "over seeds": span(e, points),
            "p (Holm)": probability(p).replace("<", "&lt;"),
            "smallest effect": "–" if smallest is None else points(smallest).lstrip("+"),
        }
        yield row | {name: number for name, number in numbers.items() if name in row}


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_the_published_differences_are_those_of_the_cells(report):
    with report.with_name("cells.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    tables = list(published(report.read_text(encoding="utf-8")))
    assert tables
    for baseline, rows in tables:
        if baseline.endswith(" with the same other settings"):
            continue  # each arm has its own baseline
        assert rows == list(computed(cells, baseline, rows))
