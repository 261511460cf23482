import time

import pytest
from problems import problem

from dash_exp.core.errors import UserError
from dash_exp.data.arithmetic import generate
from dash_exp.rewards.steps import StepsReward


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("A:7", 0),
        ("3+4=7 A:7", 1),
        ("3+4=8 A:8", 0),
        ("12+7=19 19*6=114 114-5=110 A:110", 2 / 3),
        ("3 - 5 = -2", 1),
        ("-3*-4=12", 1),
        ("2*3=6=3+3", 1),
        ("1+2+3=6", 0),  # a sum of three is no equation of two
        ("1 + 2 + 3 = 6", 0),
        ("10-4*2=2 1+1=2", 1),
        ("1" + "0" * 14 + "1+1=2", 0),  # no end of a longer number: not 1+1=2
        ("1+1=2" + "0" * 15, 0),  # nor its beginning
        ("2.5+1=6 1,005+1=6", 0),  # nor that of a number with a point or a comma
        ("1+1=2.5 1+1=2,000", 0),
        ("So 1+1=2, and 2+2=4.", 1),
        ("6/2=3", 0),  # no division
        ("1+1=2\n1+1=3", 1 / 2),
        ("9" * 16 + "+1=1", 0),  # longer than numbers are read
    ],
)
def test_the_share_of_true_equations(text, share):
    assert StepsReward()([problem("7")], [text]).rewards == [pytest.approx(share)]


@pytest.mark.parametrize(("text", "share"), [("19*6=14", 1), ("3-5=98", 1), ("19*6=114", 0), ("3+4=7 7*2=15", 1 / 2)])
def test_equations_modulo_100_as_in_the_arithmetic_problems(text, share):
    assert StepsReward(100)([problem("7")], [text]).rewards == [share]


def test_solutions_of_the_arithmetic_problems_are_all_true():
    solved = generate("train", "symbols", 200)
    assert StepsReward(100)(solved, [p.solution for p in solved]).rewards == [1] * 200


@pytest.mark.parametrize("modulus", [1, 0, True, 1.5, "100"])
def test_a_wrong_modulus(modulus):
    with pytest.raises(UserError, match=rf"^reward\.modulus={modulus}: is no whole number above 1"):
        StepsReward(modulus)


def test_hostile_texts_take_no_time():
    start = time.process_time()
    StepsReward()([problem("7")] * 3, ["1+" * 100_000, "9" * 200_000, "-" * 200_000])
    assert time.process_time() - start < 5
