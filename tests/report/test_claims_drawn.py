"""How often verdicts are right, over many drawn studies whose truth is known.

A seed changes both arms of a study five times as much as the runs of one seed differ: an interval over other pairs, or one that
is not of pairs, is far too wide. The differences are normal, so the t interval is exact and so are the rates that are expected.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from claimed import PAIR
from scipy import stats as scipy_stats

from dash_exp.report import comparison
from dash_exp.results import stats
from dash_exp.results.cells import Cell, Results

STUDIES, SEEDS = 1000, 4
FEWER = 300  # studies of what is slow to read
SD = 0.02  # of the difference between the arms of a seed; of ratios, of its logarithm
SHARED = 5 * SD  # of what a seed adds to both arms
NONE = pd.DataFrame()
KINDS = [  # a claim, the end of what it allows that is tested, and what is true above this end
    ({"kind": "faster", "ratio": 0.5}, 0.5, "contradicted"),
    ({"kind": "shorter"}, 1.0, "contradicted"),
    ({"kind": "higher", "metric": "pass@8"}, 0.0, "supported"),
    ({"kind": "not_worse", "metric": "pass@8", "margin": 0.2}, -0.2, "supported"),
    ({"kind": "equal", "metric": "pass@8", "margin": 0.2}, 0.2, "contradicted"),  # the other end is 20 SD away
]
ROUGHER = ({"kind": "more_variable", "ratio": 1.5}, 1.5, "supported")
BY_PROBLEM = [  # accuracy is paired by problem
    ({"kind": "higher"}, 0.0, "supported"),
    ({"kind": "not_worse", "margin": 0.2}, -0.2, "supported"),
    ({"kind": "equal", "margin": 0.2}, 0.2, "contradicted"),
]
PROBLEMS = 400


def each(kinds):
    return pytest.mark.parametrize(("claim", "end", "above"), kinds, ids=[claim["kind"] for claim, _, _ in kinds])


@pytest.fixture(autouse=True)
def no_further_seeds(monkeypatch):
    """The number of further seeds is not tested here, and takes most of the time."""
    monkeypatch.setattr(stats, "more_seeds", lambda *_: None)


def within(count, rate, studies=STUDIES):
    """Whether a count is among those that this rate gives with a probability of 99.9%, by the binomial distribution."""
    low, high = scipy_stats.binom.interval(0.999, studies, rate)
    return low <= count <= high


def solving(right_P):
    """The file of the problems of a cell that has these right at the end."""
    return pd.DataFrame({"problem": range(len(right_P)), "test": "in_dist", "final": np.asarray(right_P, float)})


def cell(arm, seed, value, claim, rng=None):
    """A done cell with the number that a claim is on; of ratios, `value` is its logarithm. `rng` draws the steps of a curve."""
    kind, of_problems = claim["kind"], {}
    if kind in ("higher", "not_worse", "equal") and "metric" not in claim:
        of_problems = {"problems": solving(np.arange(PROBLEMS) < round((0.5 + value) * PROBLEMS))}
    result = {
        "faster": {"time/elapsed_s": 100 * np.exp(value)},
        "shorter": {"eval/in_dist/length/mean_tokens/final": 20 * np.exp(value)},
        "more_variable": {},
    }.get(kind, {"eval/in_dist/pass@8/final": 0.5 + value})
    found = Cell(Path(f"{arm}-{seed}"), {"algo": arm, "seed": str(seed)}, "done", {"seed": seed}, result)
    vars(found).update({"problems": NONE, "metrics": NONE} | of_problems)  # as if they had been read
    if kind == "more_variable":  # without `rng` each of the inner points is exp(value) from the middle of its neighbours
        steps = [0, 1, 0, 1] if rng is None else rng.normal(size=30)
        vars(found)["metrics"] = pd.DataFrame({"reward/mean": np.exp(value) * np.array([np.nan, *steps])})
    return found


def drawn(rng, claim, end, beyond, curves=False):
    """The verdict on a study in which dash - grpo, or the logarithm of dash / grpo, is truly `beyond` above that of the end.

    `curves`: the steps of a curve are drawn too.
    """
    is_ratio = claim["kind"] in ("faster", "shorter", "more_variable")
    shared_S = rng.normal(0, SHARED, SEEDS)
    shifts = {"grpo": 0.0, "dash": (np.log(end) if is_ratio else end) + beyond}
    values = {arm: shared_S + rng.normal(shift, SD / np.sqrt(2), SEEDS) for arm, shift in shifts.items()}
    steps = rng if curves else None
    cells = [cell(arm, seed, value, claim, steps) for arm, of_arm in values.items() for seed, value in enumerate(of_arm)]
    [verdict] = comparison.verdicts(Results(cells, [PAIR | claim]))
    return verdict


@each(KINDS)
def test_how_often_a_verdict_is_wrong_at_the_end_of_what_is_claimed(claim, end, above):
    """The worst case: each of the two verdicts is found in 5% of studies, and the 90% interval covers the truth in 90%.

    Covering 868 to 930 times of 1000 has a probability of 99.9% for a 90% interval, and of 0.3% for a 95% interval.
    """
    assert not within(0.95 * STUDIES, 0.9)
    rng = np.random.default_rng(7)
    found = [drawn(rng, claim, end, 0.0) for _ in range(STUDIES)]
    assert within(sum(v.word == "supported" for v in found), 0.05)
    assert within(sum(v.word == "contradicted" for v in found), 0.05)
    assert within(sum(v.estimate.low <= end <= v.estimate.high for v in found), 0.9)


@each([*BY_PROBLEM, ROUGHER])
def test_so_by_problem_and_by_the_steps_of_a_curve(claim, end, above):
    """Numbers of problems are whole, and the logarithm of a curve's roughness is nearly normal: so in fewer studies."""
    rng = np.random.default_rng(9)
    found = [drawn(rng, claim, end, 0.0, curves=True) for _ in range(FEWER)]
    assert {v.over for v in found} == {"seeds"}
    assert within(sum(v.word == "supported" for v in found), 0.05, FEWER)
    assert within(sum(v.word == "contradicted" for v in found), 0.05, FEWER)
    assert within(sum(v.estimate.low <= end <= v.estimate.high for v in found), 0.9, FEWER)


@each(BY_PROBLEM)
def test_how_often_a_verdict_on_one_seed_is_wrong(claim, end, above):
    """Its interval is over the problems, half of which both arms solve."""
    rng = np.random.default_rng(10)
    found = []
    for _ in range(FEWER):
        u_P = rng.random(PROBLEMS)
        right = {"dash": (u_P < 0.5) | (u_P > 1 - 0.2 - max(end, 0)), "grpo": u_P < 0.7 + max(-end, 0)}
        cells = [cell(arm, 0, 0.0, claim) for arm in right]
        for of_arm, right_P in zip(cells, right.values(), strict=True):
            vars(of_arm)["problems"] = solving(right_P)
        found += comparison.verdicts(Results(cells, [PAIR | claim]))
    assert {v.over for v in found} == {"problems"}
    assert within(sum(v.word == "supported" for v in found), 0.05, FEWER)
    assert within(sum(v.word == "contradicted" for v in found), 0.05, FEWER)
    assert within(sum(v.estimate.low <= end <= v.estimate.high for v in found), 0.9, FEWER)


@each([*KINDS, *BY_PROBLEM[:1], ROUGHER])
def test_how_often_a_verdict_is_right(claim, end, above):
    """On each side, 3.3 standard errors from the end, the right verdict has a power of 80%: that of a one-sided t test at 5%.

    The statistic has a noncentral t distribution with n - 1 degrees of freedom and noncentrality sqrt(n) mean / sd. With a 95%
    interval the power would be 61%, which gives 141 to 178 of 200 right verdicts with a probability of 0.2%.
    """
    noncentrality, studies = 3.2994, 200
    power = scipy_stats.nct.sf(scipy_stats.t.isf(0.05, SEEDS - 1), SEEDS - 1, noncentrality)
    assert power == pytest.approx(0.8, abs=1e-4)
    below = "supported" if above == "contradicted" else "contradicted"
    rng = np.random.default_rng(8)
    for side, word in ((1, above), (-1, below)):
        beyond = side * noncentrality * SD / np.sqrt(SEEDS)
        words = [drawn(rng, claim, end, beyond).word for _ in range(studies)]
        assert within(words.count(word), power, studies)
        assert words.count(word) + words.count("undecided") == studies
