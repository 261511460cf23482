import pytest

from dash_exp.rewards.inside import wire
from dash_exp.rewards.sandbox_order import NoTestsError, names_of, order_of


def asked(*tests):
    order = wire.decode(order_of(tests), lambda number: None)
    assert order["pieces"] == list(tests)
    assert names_of(tests) == order["names"]
    return order["names"], order["modules"]


@pytest.mark.parametrize(
    ("tests", "names", "modules"),
    [
        (["assert f(1) == 2"], ["f"], []),
        (["x = 3", "assert f(x) == g(x)"], ["f", "g"], []),  # x is the tests' own
        (["def check(y):\n    assert f(y) == LIMIT", "check(1)"], ["LIMIT", "f"], []),  # names within a function too
        (["import math\nassert f(1) == math.pi"], ["f"], []),  # the tests import it themselves
        (["assert math.isclose(f(2), math.sqrt(2))"], ["f"], ["math"]),  # nobody does, and only its attributes are used
        (["assert math(2) == 4"], ["math"], []),  # called: the program's own
        (["assert sorted(f([2, 1])) == [1, 2]"], ["f"], []),  # builtin functions are not the program's
        (["assert sum(2, 5) == 10"], ["sum"], []),  # unless there is no other name
    ],
)
def test_which_names_are_the_program_s(tests, names, modules):
    assert asked(*tests) == (names, modules)


def test_tests_that_any_program_would_pass_are_refused():
    for tests in (("assert 1 == 1",), ("x = 1", "assert x"), ("assert len([1]) == sum([1])",)):
        with pytest.raises(NoTestsError, match="use no name of the program"):
            order_of(tests)
    for tests in (("assert f(1) ==",), ("if f(1):", "    pass"), ("f(1)\0",), ("f(" + "-" * 10**5 + "1)",)):
        with pytest.raises(NoTestsError, match="are not Python"):
            order_of(tests)
        assert names_of(tests) == []
