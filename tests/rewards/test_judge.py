"""What the judge makes of answers: those that only look right get nothing, right ones pass."""

import pytest
from answers import AGREEABLE, HONEST, OBJECTS

from dash_exp.rewards.sandbox import Outcome, Sandbox

# Passes if one of the tests does.
ANY_OF_THEM = f"""
found = []
for name, test in {AGREEABLE!r}.items():
    try:
        exec(test, {{'f': f}})
        found.append(name)
    except Exception: # `Lost` is none: a program that is gone answers nothing more
        pass
assert found
"""
RIGHT_ANSWERS = [
    "def f(x): return 271.5",
    "from fractions import Fraction\ndef f(x): return Fraction(543, 2)",
    "import numpy as np\ndef f(x): return np.array([271.5, 271.5])",
]


@pytest.fixture(scope="module", params=["bwrap", "process"])
def sandbox(request):
    if request.param == "bwrap":
        request.getfixturevalue("bubblewrap")
    return Sandbox(request.param, timeout_s=30, memory_mb=512, processes=4)


@pytest.mark.parametrize("program", OBJECTS.values(), ids=OBJECTS)
def test_no_test_believes_an_object_of_the_program(sandbox, program):
    assert sandbox.grade(program, (ANY_OF_THEM,)).status == "failed"


@pytest.mark.parametrize("program", RIGHT_ANSWERS)
def test_the_same_tests_believe_right_answers(sandbox, program):
    assert sandbox.grade(program, (ANY_OF_THEM,)) == Outcome("passed")


@pytest.mark.parametrize(("program", "tests"), HONEST.values(), ids=HONEST)
def test_a_right_answer_passes(sandbox, program, tests):
    assert sandbox.grade(program, tuple(tests)) == Outcome("passed")
