"""Numbers as people write them."""

from fractions import Fraction

import pytest

from dash_exp.rewards.quantities import Quantity, quantity, same


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("1 234 567", 1234567),
        (".5", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        ("3 1/2", Fraction(7, 2)),
        (r"6.72 \times 10^{-5}", Fraction(672, 10**7)),
        ("1e-05", Fraction(1, 10**5)),
        (r"18 \text{ dollars per day}", 18),
        ("15 cm^2", 15),
        ("2 dozen", 24),
        (r"33\%", 33),
        ("1 2", None),
        ("3x", None),
        ("3 xy", None),
        ("3 pi", None),
        (r"5 \pi", None),
        ("1/0", None),
        (r"4 \text{ hours and } 30 \text{ minutes}", None),
        ("3, 357", None),
        ("", None),
    ],
)
def test_quantity(text, value):
    read = quantity(text)
    assert (read and read.value) == value


@pytest.mark.parametrize(
    ("gold", "found", "equal"),
    [
        ("2.50", "2.5", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),  # five digits
        ("1/30000", "0.0000333333", True),
        ("1/30000", "0.000033", False),
        ("3", "2.9999999996", True),  # six places
        ("0", "0.0000000001", False),
        ("1234567.2", "1234567.25", True),  # eight digits, of which it is a rounding: 0.05 is half of the last place
        ("1234567.1", "1234567.2", False),
        ("10%", "0.1", True),
        ("10%", "10", True),
        ("10%", "0.1%", False),
        ("0.5", "50%", True),
    ],
)
def test_same(gold, found, equal):
    golds, founds = quantity(gold), quantity(found)
    assert isinstance(golds, Quantity)
    assert isinstance(founds, Quantity)
    assert same(golds, founds) is equal
