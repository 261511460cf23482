from dataclasses import replace

import pytest

from dash_exp.core.types import Problem
from dash_exp.data import digests

ONE, TWO = Problem("a", "1+1=", "2", "A:2"), Problem("b", "1+2=", "3", "A:3")


CHANGES = [{"id": "c"}, {"prompt": "1+1 ="}, {"answer": "3"}, {"tests": ("assert f()",)}]
CHANGES += [{"messages": (("user", "1+1="),)}, {"extra": {"source": "a"}}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_problem_is_what_is_asked_and_what_is_right(change):
    assert digests.of_problem(replace(ONE, **change)) != digests.of_problem(ONE)
    before, now = (digests.of_sets([p], {"in_dist": [p, TWO], "out_dist": [TWO]}) for p in (ONE, replace(ONE, **change)))
    assert {name for name in now if now[name] != before[name]} == {"data.train", "data.tests.in_dist"}


def test_solutions_and_order_matter_in_training_alone():
    before = digests.of_sets([ONE, TWO], {"in_dist": [ONE, TWO]})
    assert digests.of_sets([ONE, TWO], {"in_dist": [ONE, TWO]}) == before
    for problems in ([TWO, ONE], [replace(ONE, solution="2"), TWO]):
        now = digests.of_sets(problems, {"in_dist": problems})
        assert [name for name in now if now[name] != before[name]] == ["data.train"]
