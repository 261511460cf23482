"""Statistics: by hand, and by whether they keep what they promise when a study is repeated."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from synthetic import in_memory

from dash_exp.report import comparison
from dash_exp.results import stats

REPEATS = 200


def test_mean_interval_by_hand():
    # sd of 1, 2, 3 is 1; t(0.975, 2 degrees of freedom) = 4.3027; half-width 4.3027 / sqrt(3) = 2.4841
    e = stats.mean_interval([1, 2, 3])
    assert (e.value, e.n) == (2.0, 3)
    assert e.low == pytest.approx(2 - 2.4841, abs=1e-4)
    assert e.high == pytest.approx(2 + 2.4841, abs=1e-4)


def test_intervals_where_there_is_little_to_go_by():
    assert stats.mean_interval([]) is None
    assert stats.mean_interval([0.4]) == stats.Estimate(0.4, None, None, 1)
    same = stats.mean_interval([0.1, 0.1, 0.1])
    assert same.low == same.value == same.high  # no spread, no width
    assert stats.problem_interval([]) is None
    assert stats.problem_interval([1.0]) == stats.Estimate(1.0, None, None, 1)


def test_p_value_by_hand():
    # t = 2 / (1 / sqrt(3)) = 3.4641; with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / 3.7417 = 0.0742
    assert stats.p_value([1, 2, 3]) == pytest.approx(0.0742, abs=1e-4)
    assert stats.p_value([1]) is None
    assert stats.p_value([0.02, 0.02, 0.02]) is None


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: times 3, 2, 1 is 0.03, 0.06, 0.04, and none below one before it: 0.03, 0.06, 0.06
    assert stats.holm([0.04, None, 0.01, 0.03]) == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert stats.holm([None]) == [None]
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_ratio_by_hand():
    # ratios 1/2 and 1/8: geometric mean 1/4; logs -ln 4 +- ln 2, sd ln 2 * sqrt 2, half-width 12.706 * ln 2
    e = stats.ratio_interval([5, 5], [10, 40])
    assert e.value == pytest.approx(0.25)
    assert np.log(e.high / e.value) == pytest.approx(12.7062 * np.log(2), rel=1e-4)
    assert stats.ratio_interval([0.0], [1.0]) is None
    assert stats.ratio_interval([], []) is None


def test_bootstrap_of_half_right_problems():
    # 200 problems, half of them gained: standard error sqrt(0.25 / 200) = 0.0354, so about 0.5 +- 0.0693
    e = stats.problem_interval([0, 1] * 100)
    assert e.value == 0.5
    assert e.low == pytest.approx(0.4307, abs=0.012)
    assert e.high == pytest.approx(0.5693, abs=0.012)
    assert e == stats.problem_interval([0, 1] * 100)


def within(count: int, rate: float, repeats: int = REPEATS) -> bool:
    """Whether a count is one that a true rate gives in 999 of 1000 tests."""
    low, high = scipy_stats.binom.interval(0.999, repeats, rate)
    return low <= count <= high


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_the_interval_over_seeds_covers_the_effect_of_training(gain):
    """The same 100 problems in every study; the training of each seed and arm shifts how many of them are right."""
    rng = np.random.default_rng(1)
    ease_P = rng.uniform(0.3, 0.6, 100)
    covered = of_problems = 0
    for _ in range(REPEATS):
        shifts = {arm: rng.normal(effect, 0.08, (4, 1)) for arm, effect in (("grpo", 0.0), ("dash", gain))}
        rights = {arm: (rng.random((4, 100)) < ease_P + shift_S1).astype(int) for arm, shift_S1 in shifts.items()}
        d = comparison.difference(in_memory(rights), "dash", "grpo", "in_dist")
        covered += d.over_seeds.low <= gain <= d.over_seeds.high
        of_problems += d.over_problems.low <= gain <= d.over_problems.high
    assert within(covered, 0.95), covered
    assert not within(of_problems, 0.95), "it does not know of other seeds, which is why there are two intervals"


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_the_interval_over_problems_covers_the_difference_on_all_problems(gain):
    """Two runs of each arm as they are; each study asks other problems, of which some are easy for all runs."""
    rng = np.random.default_rng(2)
    covered = too_narrow = 0
    for _ in range(REPEATS):
        ease_P = rng.uniform(0, 1 - gain, 100)
        rights = {"grpo": rng.random((2, 100)) < ease_P, "dash": rng.random((2, 100)) < ease_P + gain}
        d = comparison.difference(
            in_memory({arm: right.astype(int) for arm, right in rights.items()}), "dash", "grpo", "in_dist"
        )
        e = d.over_problems
        covered += e.low <= gain <= e.high
        too_narrow += abs(e.value - gain) <= 0.25 * (e.high - e.low)
    assert within(covered, 0.95), covered
    assert not within(too_narrow, 0.95), "an interval half as wide has to fail this test"


def t_tests(samples_RN):
    """t and the two-sided p value of each row, by the textbook."""
    n = samples_RN.shape[1]
    t_R = samples_RN.mean(1) / (samples_RN.std(1, ddof=1) / np.sqrt(n))
    return t_R, 2 * scipy_stats.t.sf(abs(t_R), n - 1)


@pytest.mark.parametrize("comparisons", [1, 3, 13])
@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_the_smallest_effect_is_found_in_four_studies_of_five(n, comparisons):
    known = np.array([-1.0, 1.0, *[0.0] * (n - 2)]) * np.sqrt((n - 1) / 2)  # its sample sd is 1
    effect = stats.detectable(known, comparisons)
    noise_RN = np.random.default_rng(n).normal(size=(20_000, n))
    for part, is_found in ((1.0, True), (0.9, False)):
        t_R, p_R = t_tests(noise_RN + part * effect)
        found = int(((p_R < 0.05 / comparisons) & (t_R > 0)).sum())
        assert within(found, 0.8, len(noise_RN)) == is_found, found


def test_the_smallest_effect_rises_with_the_arms_and_falls_with_the_seeds():
    in_sd = np.array([[stats.detectable_in_sd(n, 0.05 / arms) for arms in range(1, 14)] for n in range(2, 8)])
    assert (np.diff(in_sd, axis=1) > 0).all()
    assert (np.diff(in_sd, axis=0) < 0).all()
    # tables of the noncentral t: one comparison with 5 pairs, three with 3 pairs
    assert [in_sd[3, 0], in_sd[1, 2]] == pytest.approx([1.682, 5.667], abs=1e-3)


def test_the_smallest_effect_is_found_by_holms_procedure_where_no_other_arm_differs():
    seeds, arms, studies = 3, 3, 1000
    samples_RAN = np.random.default_rng(4).normal(size=(studies, arms, seeds))
    samples_RAN[:, 0] += stats.detectable_in_sd(seeds, 0.05 / arms)
    p_RA = t_tests(samples_RAN.reshape(-1, seeds))[1].reshape(studies, arms)
    assert within(sum(stats.holm(p_A)[0] < 0.05 for p_A in p_RA), 0.8, studies)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_without_an_effect_the_tests_find_one_in_a_study_of_twenty(n):
    studies = 1000
    samples_RN = np.random.default_rng(5).normal(size=(4 * studies, n))
    p_R = t_tests(samples_RN)[1]
    assert [stats.p_value(x_N) for x_N in samples_RN[:5]] == pytest.approx(p_R[:5])
    assert within((p_R < 0.05).sum(), 0.05, len(p_R))
    of_four = sum(min(stats.holm(p_4)) < 0.05 for p_4 in p_R.reshape(studies, 4))
    assert within(of_four, 1 - (1 - 0.05 / 4) ** 4, studies), of_four  # the four are independent here


@pytest.mark.parametrize("n", [2, 3])
def test_intervals_over_seeds_cover_the_mean_and_the_ratio(n):
    rng = np.random.default_rng(6)
    means = ratios = 0
    for _ in range(REPEATS):
        e = stats.mean_interval(rng.normal(0.3, 0.1, n))
        means += e.low <= 0.3 <= e.high
        e = stats.ratio_interval(0.5 * rng.lognormal(3, 0.2, n), rng.lognormal(3, 0.2, n))
        ratios += e.low <= 0.5 <= e.high
    assert within(means, 0.95), means
    assert within(ratios, 0.95), ratios


def test_the_smallest_effect_without_spread_or_seeds():
    assert stats.detectable([0.1]) is None
    assert stats.detectable([0.1, 0.1]) is None
    with pytest.raises((ArithmeticError, ValueError)):
        stats.detectable_in_sd(3, np.nan)  # no number rather than a wrong one


# --- claims ------------------------------------------------------------------------------------------------------------


def test_a_verdict_by_hand():
    e = stats.Estimate(0.01, -0.01, 0.03, 3)
    assert stats.verdict(e, (-0.02, np.inf)) == "supported"  # not worse by 0.02: the lower end is above -0.02
    assert stats.verdict(e, (0.0, np.inf)) == "undecided"  # higher
    assert stats.verdict(e, (0.03, np.inf)) == "contradicted"  # higher by 0.03: nothing of the interval is
    assert stats.verdict(e, (-0.02, 0.02)) == "undecided"  # equal within 0.02: the upper end is outside
    assert stats.verdict(e, (-0.04, 0.04)) == "supported"
    assert stats.verdict(e, (-np.inf, -0.01)) == "contradicted"  # lower by 0.01
    assert stats.verdict(stats.Estimate(0.5, None, None, 1), (0.0, np.inf)) == "undecided"


def test_the_bounds_over_problems_have_a_width_where_all_are_equal():
    # 0 of 100 differ: with a share of 1 - 0.05^(1/100) = 2.95% one would have been met in 95% of studies
    e = stats.problem_bounds([0.0] * 100)
    assert (e.value, e.low, e.high) == (0.0, pytest.approx(-0.0295, abs=1e-4), pytest.approx(0.0295, abs=1e-4))
    e = stats.problem_bounds([1.0] * 4)  # 1 - 0.05^(1/4) = 52.7% may be at -1: the mean is at least 1 - 2 * 0.527
    assert (e.low, e.high) == (pytest.approx(-0.0543, abs=1e-4), 1.0)
    narrow, wide = stats.problem_bounds([0, 1] * 50), stats.problem_interval([0, 1] * 50)
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high  # 90% and 95%
    assert stats.problem_bounds([]) is None


REGIONS = {"higher": (0.0, np.inf), "not_worse": (-2.0, np.inf), "faster": (-np.inf, -1.0), "equal": (-2.0, 2.0)}


STUDIES = 400


def words(kind, mean, n):
    """How often each verdict is found where values are normal with this mean and a standard deviation of 1."""
    samples_RN = np.random.default_rng(n).normal(mean, 1.0, (STUDIES, n))
    said = [stats.verdict(stats.mean_interval(x_N, stats.CLAIMED), REGIONS[kind]) for x_N in samples_RN]
    return {word: said.count(word) for word in ("supported", "contradicted", "undecided")}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize(("kind", "end"), [("higher", 0.0), ("not_worse", -2.0), ("faster", -1.0)])
def test_on_the_bound_each_wrong_verdict_is_found_in_a_study_of_twenty(kind, end, n):
    """The bound is outside of the claim: there it is false and its opposite true, each as hard to tell as it can be."""
    found = words(kind, end, n)
    assert within(found["supported"], 0.05, STUDIES), found
    assert within(found["contradicted"], 0.05, STUDIES), found


@pytest.mark.parametrize("n", [3, 6, 20])
def test_equality_is_not_found_where_the_difference_is_as_large_as_the_margin(n):
    """Two tests of 5% each must succeed, so that it is at most 5%, and with few seeds much less."""
    for mean in (2.0, -2.0, 3.0):
        found = words("equal", mean, n)
        assert found["supported"] <= scipy_stats.binom.isf(0.0005, STUDIES, 0.05), found
    assert words("equal", 0.0, 20)["supported"] == STUDIES


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(
    ("region", "mean", "further"),
    [
        ((0.0, np.inf), 1.0, {2: 6, 3: 5, 8: 1}),  # tables of the one-sided t test: 8 values find 1 sd in 81% of studies
        ((0.0, np.inf), -1.0, {2: 6, 3: 5, 8: 1}),
        ((-np.inf, -1.0), -1.5, None),
        ((-1.0, 1.0), 0.2, None),
        ((-1.0, 1.0), 0.0, None),
        ((-1.0, 1.0), 1.6, None),
    ],
)
def test_with_the_further_seeds_four_studies_of_five_decide(region, mean, further, n):
    """If the true mean and spread are those of the sample. With a seed less they do not, unless one is the least."""
    sample = np.linspace(-1, 1, n)
    sample = sample / sample.std(ddof=1) + mean
    more = stats.more_seeds(sample, region)
    assert further is None or more == further[n]
    rates = {}
    for total in (n + more, n + more - 1):
        samples_RN = np.random.default_rng(total).normal(mean, 1.0, (20_000, total))
        half_R = scipy_stats.t.ppf(0.95, total - 1) * samples_RN.std(1, ddof=1) / np.sqrt(total)
        low_R, high_R = samples_RN.mean(1) - half_R, samples_RN.mean(1) + half_R
        inside_R = (low_R > region[0]) & (high_R < region[1])
        rates[total] = np.mean(inside_R if region[0] < mean < region[1] else (high_R <= region[0]) | (low_R >= region[1]))
    assert rates[n + more] > 0.79
    assert more == 1 or rates[n + more - 1] < 0.82


def test_more_than_fifty_further_seeds_are_not_counted():
    assert stats.more_seeds([-1.0, 1.0, 0.3], (0.0, np.inf)) is None  # 0.1 of 1.01 sd: some 600 seeds
    assert stats.more_seeds([-1.0, 0.0, 1.0], (0.0, np.inf)) is None  # on the bound no number decides
    assert stats.more_seeds([0.999, 1.0, 1.001], (0.0, np.inf)) == 1
