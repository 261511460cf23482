"""Which number of a cell a claim is on, and which pairs of cells count."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from claimed import FASTER, PAIR, judged, write_sweep
from reports import document_of, rows
from synthetic import write_cell

from dash_exp.report.comparison.claims import roughness

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_seeds_that_are_not_done_in_both_do_not_count(tmp_path):
    folder = write_sweep(tmp_path, [FASTER], dash=[{"seconds": s} for s in (40, 42, 44, 90)], seeds=3)
    (folder / "algo=grpo,seed=1" / "result.json").write_text(json.dumps({"status": "failed", "error": "OutOfMemoryError"}))
    v, _ = judged(folder)
    assert (v.n, v.estimate.value) == (2, pytest.approx(np.sqrt(0.4 * 0.44)))
    for seed in (0, 2):
        shutil.rmtree(folder / f"algo=grpo,seed={seed}")
    v, text = judged(folder)
    assert (v.word, v.estimate, text) == ("undecided", None, "not judged: no seed is done in both")
    assert rows(document_of(folder), "verdicts")["undecided"][-2:] == ["0", "–"]


def test_an_arm_that_learns_from_traces_has_no_reward_of_its_own(tmp_path):
    claim = {"arm": ["algo=sft_h"], "against": ["algo=dash"], "kind": "higher", "metric": "reward/mean"}
    for algo in ("dash", "sft_h"):
        write_cell(tmp_path / algo, [f"algo={algo}"], settings={"study": {"claims": [claim]}})
    assert judged(tmp_path)[1] == "not judged: not measured in sft_h with seed 0"


# 0, 0.2, 0, 0.2 varies by 0.2 from step to step, by hand below; FLAT by 0, as where every reward is the same.
ROUGH, FLAT = {"curve": (0, 0, 0.2, 0, 0.2)}, {"curve": (0, 1, 1, 1, 1)}
ROUGHER = [{"curve": (0, 0, x, 0, x)} for x in (0.4, 0.42, 0.44)]


@pytest.mark.parametrize(
    ("dash", "grpo", "estimate", "n", "said"),
    [
        (ROUGHER, [ROUGH, FLAT, ROUGH], np.sqrt(2 * 2.2), 2, "left out: no ratio, as it is 0 in grpo with seed 1)"),
        ([FLAT, *ROUGHER[1:]], [ROUGH] * 3, np.sqrt(2.1 * 2.2), 2, "left out: no ratio, as it is 0 in dash with seed 0)"),
        ([FLAT, *ROUGHER[:2]], [FLAT, ROUGH, FLAT], 2.0, 1, "0 in dash and grpo with seed 0; no ratio, as it is 0 in grpo"),
        (ROUGHER, [FLAT] * 3, None, 0, "not judged: no ratio, as it is 0 in grpo with seeds 0, 1, 2"),
    ],
)  # fmt: skip
def test_without_the_ratio_of_a_pair_there_is_no_verdict(tmp_path, dash, grpo, estimate, n, said):
    """A run that collapsed has no variation. The other two seeds alone would give `supported`: 2 and 2.2 times as much."""
    v, text = judged(write_sweep(tmp_path, [PAIR | {"kind": "more_variable"}], dash=dash, grpo=grpo))
    assert (v.word, v.over, v.n, v.more_seeds) == ("undecided", "", n, None)
    assert said in text
    assert ("no interval: what is left out could change the verdict" in text) == (estimate is not None)
    assert (v.estimate and v.estimate.value) == (estimate and pytest.approx(estimate))
    assert rows(document_of(tmp_path), "verdicts")["undecided"][1:] == [text, str(n), "unknown" if n else "–"]


def test_pairs_that_were_not_measured_are_named(tmp_path):
    """Which does not depend on the outcome, so the others have a verdict."""
    folder = write_sweep(tmp_path, [FASTER], dash=[{"seconds": s} for s in (40, 42, 44, 40)], seeds=4)
    for seed in (1, 3):
        file = folder / f"algo=grpo,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"time/elapsed_s": None}))
        (file.parent / "metrics.csv").unlink()  # whose mean would count
    v, text = judged(folder)
    assert (v.n, v.over) == (2, "seeds")
    assert text.endswith("2 seeds; left out: not measured in grpo with seeds 1, 3)")


def test_a_number_that_is_not_finite_leaves_no_verdict(tmp_path):
    claim = PAIR | {"kind": "higher", "metric": "reward/mean"}
    folder = write_sweep(tmp_path, [claim], dash=[{"curve": (0, x, x)} for x in (0.5, 0.6, np.inf)])
    assert judged(folder)[1].endswith("could change the verdict; left out: not finite in dash with seed 2)")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("accuracy/out_dist", "accuracy/out_dist of dash is 10.0 points above"),
        ("eval/out_dist/avg@8", "eval/out_dist/avg@8 of dash is 10.0 points above"),
        ("eval/in_dist/pass@8", "eval/in_dist/pass@8 of dash is 10.0 points above"),
        ("eval/in_dist/length/mean_tokens", "eval/in_dist/length/mean_tokens of dash is 0.1 tokens above"),
    ],
)
def test_a_name_of_metrics_csv_is_its_mean_over_the_outer_steps(tmp_path, column, said):
    """Without row 0, and of the test set in the name, whatever `test` is."""
    folder = write_sweep(tmp_path, [PAIR | {"kind": "higher", "metric": column}])
    for seed, of_dash in enumerate((0.5, 0.6, 0.7)):
        for algo, value in (("grpo", 0.5), ("dash", of_dash)):
            file = folder / f"algo={algo},seed={seed}" / "metrics.csv"
            csv = pd.read_csv(file)
            # evaluated before training, after step 1 and at the end: (value - 0.1 + value + 0.1) / 2
            csv[column] = [9.0, value - 0.1, np.nan, value + 0.1]
            csv.to_csv(file, index=False)
    v, text = judged(folder)
    # 0, 0.1, 0.2: mean 0.1, sd 0.1, half-width 0.16859
    assert (v.word, v.n) == ("undecided", 3)
    assert (v.estimate.value, v.estimate.low) == pytest.approx((0.1, -0.06859), rel=1e-3)
    assert text.startswith(said)
    problems = folder / "algo=dash,seed=2" / "problems.csv"
    test = column.split("/")[1]
    problems.write_text(problems.read_text().replace(f"{test}/0", f"{test}/new"))
    v, text = judged(folder)
    assert text.endswith("left out: other test problems in each with seed 2)")


def test_roughness_by_hand():
    assert roughness(np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.0, abs=1e-12)  # a steady rise
    # 1 - (0 + 0) / 2 = 1, 0 - (1 + 2) / 2 = -1.5, 2 - (0 + 2) / 2 = 1: sqrt((1 + 2.25 + 1) / 3)
    assert roughness(np.array([0.0, 1.0, 0.0, 2.0, 2.0])) == pytest.approx(np.sqrt(4.25 / 3))
    assert roughness(np.array([0.0, 1.0])) is None
