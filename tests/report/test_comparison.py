"""The numbers of a comparison, worked by hand on synthetic sweeps."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from reports import document_of, rows, warnings_of
from synthetic import write_cell

from dash_exp import report
from dash_exp.core.errors import UserError
from dash_exp.report import comparison, paper
from dash_exp.report.comparison import BASE
from dash_exp.results.cells import Results, load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_differences_by_hand(sweep):
    d = comparison.differences(load([sweep]), "grpo", "in_dist")[0]
    # 0, 1/4, 1/4: mean 1/6, sd 0.1443, half-width 4.3027 x 0.1443 / sqrt(3) = 0.3586; t = 2, p = 1 - 2 / sqrt(6) = 0.1835
    assert d.over_seeds.value == pytest.approx(1 / 6)
    assert d.over_seeds.high - d.over_seeds.value == pytest.approx(0.3586, abs=1e-4)
    assert d.p == d.p_holm == pytest.approx(0.1835, abs=1e-4)
    # problem by problem 0, 0, 0, 2/3: the same mean. The percentiles for 4 values are Phi(+-sqrt(4/3) 3.182) = 0.01 and 99.99%;
    # the fourth problem is drawn all four times in 1/4^4 = 0.4% of the draws
    assert d.over_problems.value == pytest.approx(1 / 6)
    assert (d.over_problems.low, d.over_problems.high) == pytest.approx((0.0, 2 / 3))
    # noncentral t: 3 pairs need 3.26 standard deviations for a power of 80%
    assert d.detectable / 0.1443 == pytest.approx(3.26, abs=0.01)


def test_time_to_a_target(tmp_path):
    """The first evaluation at or above it; a seed that never gets there is infinitely late."""
    for seed, curve in enumerate([(0.2, 0.5, 0.6, 0.9), (0.2, 0.6, 0.5, 0.9), (0.2, 0.3, 0.3, 0.3)]):
        write_cell(tmp_path / f"dash{seed}", ["algo=dash", f"seed={seed}"], curve=curve, seconds=30)
        never = (0.2, 0.3, 0.3, 0.59 + 0.01 * (seed == 0))
        write_cell(tmp_path / f"grpo{seed}", ["algo=grpo", f"seed={seed}"], curve=never, seconds=30)
    results = load([tmp_path])
    dash, grpo = (comparison.reach(results, arm, 0.6) for arm in ("dash", "grpo"))
    assert (dash.n, dash.reached) == (3, 2)
    # steps 2, 1, never: median 2, after 20 of 30 seconds and 200 tokens
    assert dash.median == {"steps": 2, "seconds": 20, "sampled_tokens": 200, "optimizer_steps": 2}
    assert grpo.reached == 1 and math.isinf(grpo.median["seconds"])
    shown = rows(document_of(tmp_path, target=0.6), "target")
    assert shown["dash"] == ["2 of 3 seeds", "2", "20.0 s", "200", "2"]
    assert shown["grpo"] == ["1 of 3 seeds", *["median not reached"] * 4]
    assert comparison.reach(results, "dash", 0.95).reached == 0


def test_the_target_that_is_derived(sweep):
    target = comparison.choose_target(load([sweep]), "grpo", None)
    assert target.value == pytest.approx(0.25 + 0.95 * 0.5)  # from 0.25 to 0.75
    assert target.why == "95% of the way from the base model to the final accuracy of grpo"
    assert "given" in comparison.choose_target(load([sweep]), "grpo", 0.9).why
    assert comparison.choose_target(Results([]), None, None) is None


def test_mean_curves_cover_what_all_seeds_cover():
    x, y = comparison.mean_line([(np.array([0.0, 2.0]), np.array([0.0, 2.0])), (np.array([1.0, 3.0]), np.array([3.0, 5.0]))])
    assert x.tolist() == [1.0, 2.0]
    assert y.tolist() == [2.0, 3.0]  # (1 + 3) / 2, (2 + 4) / 2
    assert comparison.mean_line([(np.array([0.0]), np.array([1.0])), (np.array([2.0]), np.array([1.0]))]) is None


def test_phases_and_the_rest(sweep):
    # total 110 = 50 sampling + 25 updating + 10 evaluation + 25 for which no phase accounts
    assert comparison.phases(load([sweep]), "grpo") == {
        "sample": 50, "score": 0, "update": 25, "sync": 0, "eval": 10, "other": 25,
    }  # fmt: skip


def test_seeds_that_only_one_arm_has(sweep):
    shutil.rmtree(sweep / "algo=grpo,seed=0")
    assert "different seeds done (0, 1, 2 in dash; 1, 2 in grpo)" in warnings_of(sweep)
    d = comparison.differences(load([sweep]), "grpo", "in_dist")[0]
    # by seed, not by place: 1 - 3/4 with seeds 1 and 2
    assert (d.over_seeds.n, d.over_seeds.value, d.over_problems.value) == (2, 0.25, 0.25)


def test_the_baseline_by_name(tmp_path):
    for algo in ("grpo", "dash"):
        for coef in ("0", "0.04"):
            write_cell(tmp_path / f"{algo}{coef}", [f"algo={algo}", f"kl.coef={coef}", "seed=0"])
    results = load([tmp_path])
    assert comparison.choose_baseline(results, None) == "dash, kl.coef=0"
    assert comparison.choose_baseline(results, "grpo, kl.coef=0.04") == "grpo, kl.coef=0.04"
    assert comparison.choose_baseline(results, BASE) == BASE
    with pytest.raises(UserError, match="matches several arms"):
        comparison.choose_baseline(results, "grpo")
    with pytest.raises(UserError, match="baseline=sft: is not the name of an arm"):
        comparison.choose_baseline(results, "sft")


def test_arms_of_several_models_are_each_compared_with_the_baseline_of_their_own(tmp_path):
    """One model ends higher; PPO adds nothing to either. Against the other model's DASH it would seem to add a half."""
    study = {"study": {"baseline": ["algo=dash"]}}
    for model, right in {"tiny": [1, 1, 0, 0], "tiny_random": [1, 1, 1, 1]}.items():
        for algo in ("dash", "ppo_mini"):
            for seed in (0, 1):
                overrides = [f"model={model}", f"algo={algo}", f"seed={seed}"]
                write_cell(tmp_path / ",".join(overrides), overrides, in_dist=right, settings=study)
    results = load([tmp_path])
    found = comparison.differences(results, results.baseline, "in_dist")
    assert {d.arm: d.over_seeds.value for d in found} == {"model=tiny, ppo_mini": 0.0, "model=tiny_random, ppo_mini": 0.0}
    text = report.write(results, tmp_path / "report").with_name("report.md").read_text()
    assert "points from algo=dash with the same other settings" in text
    assert "points compared with model=tiny\\_random, dash" in text


def test_an_arm_that_learns_from_written_traces_has_no_completions_of_its_own(tmp_path):
    for algo in ("dash", "sft_h"):
        write_cell(tmp_path / algo, [f"algo={algo}"])
    results = load([tmp_path])
    assert [comparison.learns_from_traces(results, arm) for arm in ("dash", "sft_h")] == [False, True]
    assert comparison.curve(results, "dash", "reward/mean", "steps") is not None
    assert comparison.curve(results, "sft_h", "reward/mean", "steps") is None
    assert comparison.curve(results, "sft_h", "accuracy/in_dist", "steps") is not None
    assert comparison.curve(results, "sft_h", "accuracy/in_dist", "sampled_tokens") is None
    text = report.write(results, tmp_path / "report").with_name("report.md").read_text()
    assert "learned from written traces" in text
    assert "written trace; reward" in text


def only(cell, problems):
    """Leave a cell with some of its test problems, as if it had been tested on these alone."""
    table = pd.read_csv(cell / "problems.csv")
    table = table[table["problem"].isin(problems)]
    table.to_csv(cell / "problems.csv", index=False)
    file = cell / "result.json"
    result = json.loads(file.read_text())
    for test, left in table.groupby("test"):
        result |= {f"accuracy/{test}/{when}": left[when].mean() for when in ("base", "final")}
    file.write_text(json.dumps(result))


@pytest.fixture
def other_problems(tmp_path):
    """Both arms give the same answers, 6 of 8 right, but dash was only tested on the 6 that it can solve."""
    study = {
        "study": {"baseline": ["algo=grpo"], "paper": {"table": 3, "methods": {"grpo": "GRPO", "dash": "DASH", "base": "Base"}}}
    }
    for seed in range(3):
        for algo in ("grpo", "dash"):
            cell = tmp_path / f"{algo}{seed}"
            right, base = [1] * 6 + [0] * 2, [1] * 2 + [0] * 6
            write_cell(cell, [f"algo={algo}", f"seed={seed}"], right, right, base, settings=study)
            if algo == "dash":
                only(cell, [f"{test}/{i}" for test in ("in_dist", "out_dist") for i in range(6)])
    return tmp_path


def test_arms_are_compared_on_the_problems_of_both(other_problems):
    results = load([other_problems])
    [d] = comparison.differences(results, "grpo", "in_dist")
    assert (d.over_seeds.value, d.over_seeds.n, d.over_problems.n, d.p) == (0.0, 3, 6, None)  # not 1 - 6/8
    assert rows(document_of(other_problems), "differences")["dash"][:4] == ["in distribution", "3", "6", "0.0"]
    changes = {(c.arm, c.quantity.partition(";")[0]): c.ours for c in paper.changes(results, "grpo")}
    assert changes["dash", "MATH"] == 0.0
    assert changes[BASE, "MATH"] == pytest.approx(2 / 6 - 1)  # of grpo's own runs: from 6 of 8 back to 2 of 8
    said = warnings_of(other_problems)
    assert "Not all cells were tested on the same problems of in_dist." in said
    assert "The runs started differently" not in said  # 2 of 6 and 2 of 8 are the same start


def test_a_metric_without_problems_is_compared_only_between_cells_with_the_same(other_problems):
    for file in other_problems.glob("*/result.json"):
        right = 0.9 if "dash" in str(file) else 0.6
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eval/in_dist/pass@8/final": right}))
    change = [load([other_problems]), "dash", "grpo", "in_dist", "pass@8"]
    assert comparison.relative_change(*change) is None
    for seed in range(3):
        only(other_problems / f"grpo{seed}", [f"in_dist/{i}" for i in range(6)])
    assert comparison.relative_change(load([other_problems]), *change[1:]) == pytest.approx(0.5)


def test_each_seed_may_have_problems_of_its_own(other_problems):
    for seed, problems in enumerate(([0, 1], [2, 3], [4, 5])):
        for algo in ("grpo", "dash"):
            only(other_problems / f"{algo}{seed}", [f"in_dist/{i}" for i in problems])
    [d] = comparison.differences(load([other_problems]), "grpo", "in_dist")
    assert (d.over_seeds.value, d.over_seeds.n, d.over_problems.n) == (0.0, 3, 6)
    only(other_problems / "dash0", ["in_dist/1"])
    only(other_problems / "grpo0", ["in_dist/0"])  # nothing in common: this pair says nothing
    [d] = comparison.differences(load([other_problems]), "grpo", "in_dist")
    assert (d.over_seeds.n, d.over_problems.n) == (2, 4)


def test_the_smallest_effect_counts_the_arms_that_have_a_test(sweep):
    """Three arms, of which two have several seeds: Holm's correction is for one test of dash, not for two."""
    write_cell(sweep / "rloo", ["algo=rloo", "seed=0"], in_dist=(1, 1, 1, 1))
    found = {d.arm: d for d in comparison.differences(load([sweep]), "grpo", "in_dist")}
    assert found["rloo"].p is None
    assert found["dash"].p == found["dash"].p_holm
    assert found["dash"].detectable / 0.1443 == pytest.approx(3.26, abs=0.01)
