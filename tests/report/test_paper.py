"""Changes against the baseline in the paper and here."""

import json
from types import SimpleNamespace

import pytest
from reports import document_of, section, texts
from synthetic import write_cell

from dash_exp.report import paper
from dash_exp.report.comparison import BASE
from dash_exp.report.sections.paper import ways
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
    table = section(document_of(sweep), "paper").blocks[2]
    assert ["dash", "DASH", "training time", "−83.0%", "−50.0%"] in [[c.text for c in row] for row in table.rows]
    assert "Of the 5 changes in the paper" in texts(document_of(sweep), "paper")  # Base: MATH, GSM8K; DASH: time, MATH, GSM8K


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


@pytest.mark.parametrize(
    ("seconds", "ways"),
    [
        ((40.0, 50.0, 60.0), {"training time": "same", "MATH": "opposite"}),  # of 100 s; in the paper -83% and -1.4%
        ((160.0, 200.0, 250.0), {"training time": "opposite", "MATH": "opposite"}),
        ((40.0, 100.0, 250.0), {"training time": "undecided", "MATH": "opposite"}),
        ((50.0,), {"training time": "undecided"}),  # one seed: no interval
    ],
)
def test_whether_ours_goes_the_way_of_the_paper(tmp_path, seconds, ways):
    study = {"study": {"baseline": ["algo=grpo"], "paper": {"table": 3, "methods": {"grpo": "GRPO", "dash": "DASH"}}}}
    for seed, dash_s in enumerate(seconds):
        write_cell(tmp_path / f"grpo{seed}", ["algo=grpo", f"seed={seed}"], [0] * 20, [0, 1] * 10, [0] * 20, settings=study)
        right = [1] * (17 + seed) + [0] * (3 - seed)  # 17, 18, 19 of 20 against none: +90 points, far from 0
        write_cell(
            tmp_path / f"dash{seed}", ["algo=dash", f"seed={seed}"], right, [1, 0] * 10, [0] * 20, dash_s, settings=study
        )
    found = {c.quantity.partition(";")[0]: c for c in paper.changes(load([tmp_path]), "grpo")}
    assert {name: found[name].way("0.5B") for name in ways} == ways
    assert found["GSM8K"].way("0.5B") == "undecided"  # as many right with every seed, other problems: about 0
    assert found["MATH"].way("3B") == ""  # not in table 3


def test_what_the_paper_leaves_as_it_is_has_no_way(tmp_path):
    """Table 5: PPO-Multi has DASH's 54.0% on MATH at 1.5B."""
    study = {"study": {"baseline": ["algo=dash"], "paper": {"table": 5, "methods": {"dash": "DASH", "ppo_multi": "PPO-Multi"}}}}
    for algo in ("dash", "ppo_multi"):
        write_cell(tmp_path / algo, [f"algo={algo}", "seed=0"], settings=study)
    [math, _] = paper.changes(load([tmp_path]), "dash")
    assert (math.by_model["1.5B"], math.way("1.5B"), math.way("0.5B")) == (0.0, "", "undecided")
    document = document_of(tmp_path)
    assert "Of the 3 changes in the paper, 0 go the same way here" in texts(document, "paper")
    [row, _] = section(document, "paper").blocks[2].rows
    assert [cell.detail for cell in row][3:5] == ["undecided", ""]
    assert row[5].detail.endswith(" points, over problems")  # one seed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["same"], "1 change in the paper, 1 goes the same way here and 0 the opposite way; 0 are undecided."),
        (["same"] * 2 + ["undecided", ""], "3 changes in the paper, 2 go the same way here and 0 the opposite way; 1 is"),
        (["opposite"], "1 change in the paper, 0 go the same way here and 1 the opposite way; 0 are undecided."),
    ],
)  # fmt: skip
def test_one_change_goes_and_several_go(words, said):
    change = SimpleNamespace(by_model=dict.fromkeys(range(len(words))), way=words.__getitem__)
    assert ways([change]).startswith(f"Of the {said}")
