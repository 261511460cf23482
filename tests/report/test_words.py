"""How a report writes numbers."""

import pytest

from dash_exp.report import words
from dash_exp.results.stats import Estimate

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_numbers_in_words():
    assert [words.times(x) for x in (0.566, 0.0123, 1234.5, 12)] == ["0.57", "0.012", "1,234", "12.00"]
    assert [words.points(x) for x in (-0.002, 0.0, 0.0004, -0.0004, 0.12)] == ["−0.2", "0.0", "0.0", "0.0", "+12.0"]
    assert [words.seconds(x) for x in (12.34, 154, 5000)] == ["12.3 s", "2:34", "1:23:20"]
    assert [words.probability(p) for p in (None, 0.0001, 0.0312)] == ["–", "< 0.001", "0.031"]
    cut = words.unit(Estimate(0.9, -0.1, 1.2, 3))
    assert words.span(cut, words.percent) == "0.0 to 100.0"
