"""Changes against the baseline in the paper and here."""

import json

import pytest
from reports import document_of, section
from synthetic import write_cell

from dash_exp.report import paper
from dash_exp.report.comparison import BASE
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_beside_the_paper_by_hand(sweep):
    methods = {"grpo": "GRPO", "dash": "DASH", "base": "Base"}
    for file in sweep.glob("*/config.yaml"):
        file.write_text(file.read_text().replace("paper: null", f"paper: {json.dumps({'table': 3, 'methods': methods})}"))
    found = {(c.arm, c.quantity.partition(";")[0]): c for c in paper.changes(load([sweep]), "grpo")}
    time = found["dash", "training time"]
    assert time.by_model == {"0.5B": pytest.approx(6.6 / 38.9 - 1)}  # 38.9 h -> 6.6 h: -83%
    assert time.ours == pytest.approx(-0.5)
    assert found["dash", "MATH"].by_model["0.5B"] == pytest.approx(27.2 / 27.6 - 1)
    assert found["dash", "MATH"].ours == pytest.approx(0.9167 / 0.75 - 1, abs=1e-3)
    assert found[BASE, "GSM8K"].by_model["0.5B"] == pytest.approx(30.3 / 32.8 - 1)
    assert (BASE, "training time") not in found
    table = section(document_of(sweep), "paper").blocks[1]
    assert ["dash", "DASH", "training time", "−83.0%", "−50.0%"] in [[c.text for c in row] for row in table.rows]


def test_methods_by_the_value_of_a_swept_key(tmp_path):
    for coef in ("0", "0.04"):
        write_cell(tmp_path / coef, ["algo=dash", f"kl.coef={coef}", "seed=0"])
    results = load([tmp_path])
    assert results.arms == ["kl.coef=0", "kl.coef=0.04"]
    methods = {0: "No-KL", 0.04: "DASH (KL 0.04)"}
    assert [paper.method_of(results, arm, methods) for arm in results.arms] == ["No-KL", "DASH (KL 0.04)"]
    assert paper.method_of(results, "kl.coef=0", {"kl.coef=0": "exact", 0: "value"}) == "exact"
    assert paper.method_of(results, "kl.coef=0", {"grpo": "GRPO"}) is None


def test_the_table_of_the_paper_is_whole():
    table = paper.read()
    assert len(table) == 41
    assert sorted(set(table["table"])) == [1, 2, 3, 4, 5, 6]
