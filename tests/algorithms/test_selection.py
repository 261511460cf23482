"""Rules that select prompts: the probabilities that they give, and how they change from one outer step to the next."""

from itertools import product

import pytest
import torch

from dash_exp.algorithms import selection

RIGHT, WRONG, MIXED = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]


def groups(**rewards):
    return [(problem, torch.tensor(values, dtype=torch.float64)) for problem, values in rewards.items()]


def test_uniform_learns_nothing():
    rule = selection.Uniform()
    rule.observe(groups(a=WRONG, b=MIXED))
    assert (rule.chance("a"), rule.chance("b"), rule.state(), rule.first, rule.beside(64)) == (1, 1, {}, None, 0)


def test_greso_skips_by_the_length_of_the_last_run_without_a_signal():
    rule = selection.GRESO(explore_easy=0.5, explore_hard=0.25, step=0)
    assert rule.chance("easy") == 1
    for _ in range(2):
        rule.observe(groups(easy=RIGHT, hard=WRONG, mixed=MIXED, over=WRONG))
    rule.observe(groups(over=MIXED))
    assert [rule.chance(problem) for problem in ("easy", "hard", "mixed", "over")] == [0.5**2, 0.25**2, 1, 1]
    rule.observe(groups(hard=RIGHT, easy=[0.7 + 0.2 + 0.1] * 2))  # the last group says of which kind the run is
    assert [rule.chance(problem) for problem in ("easy", "hard")] == [0.5**3, 0.5**3]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_greso_samples_a_prompt_less_often_by_the_probability_of_no_signal(p):
    """Every group of 3 with its probability: in the second pass it is sampled with 1 - (p^3 + q^3) (1 - e)."""
    expected = 0.0
    for rewards in product([0.0, 1.0], repeat=3):
        rule = selection.GRESO(explore_easy=0.5, explore_hard=0.25)
        rule.observe(groups(a=rewards))
        expected += p ** sum(rewards) * (1 - p) ** (3 - sum(rewards)) * rule.chance("a")
    assert expected == pytest.approx(1 - p**3 * (1 - 0.5) - (1 - p) ** 3 * (1 - 0.25))


def test_greso_moves_with_the_share_of_groups_without_a_signal():
    rule = selection.GRESO(target_easy=0.25, target_hard=0.25)
    step = groups(a=RIGHT, b=MIXED, c=MIXED, d=MIXED)
    rule.observe(step)
    assert (rule.explore_easy, rule.explore_hard) == (0.5, 0.5)  # no prompt came again
    rule.observe(step)  # of four groups one is easy, which is the target, and none hard
    assert (rule.explore_easy, rule.explore_hard) == pytest.approx((0.49, 0.51))
    for _ in range(60):
        rule.observe(step)
    assert (rule.explore_easy, rule.explore_hard) == (0.05, 0.95)


def test_screening_asks_for_as_many_as_it_expects_to_need():
    rule = selection.Screen(wide=4)
    assert rule.candidates(8, 0, 0) == 8  # nothing is known: as if all had a signal
    assert rule.candidates(6, 8, 2) == 24  # a quarter had one
    assert rule.candidates(8, 8, 0) == 32  # none had: the most
    rule.observe(groups(a=[1.0, 0.0, 1.0], b=[1.0, 1.0, 0.0], c=WRONG))  # by the first two: one of three
    assert rule.candidates(8, 0, 0) == 24
    assert rule.beside(8) == 3 * 4 * 8 * 2


@pytest.mark.parametrize("rule", [selection.GRESO, selection.Screen, selection.Uniform])
def test_a_rule_goes_on_from_its_state(rule):
    first, second = rule(), rule()
    first.observe(groups(a=WRONG, b=MIXED))
    state = first.state()
    first.observe(groups(a=WRONG, b=WRONG))  # which does not change what was kept
    second.restore(state)
    second.observe(groups(a=WRONG, b=WRONG))
    assert first.state() == second.state()
    assert [first.chance(p) for p in "ab"] == [second.chance(p) for p in "ab"]
