import pytest
from problems import DOUBLE

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import check_problems
from dash_exp.rewards.code import CodeReward
from dash_exp.rewards.sums import SumReward


def test_code_is_graded_in_order_and_failures_are_counted_apart(bubblewrap):
    reward = CodeReward(timeout_s=1, workers=3)
    texts = [
        "def double(x):\n    return x + x",
        "I think\n```python\ndef double(x):\n    return 2 * x\n```\nis right.",
        "def double(x):\n    return x ** 2",
        "def double(x):\n    while True: pass",
        "no program at all",
        "import sys; sys.exit(0)",
        "def double(x):\n    return 2 * x",
    ]
    broken = Problem("b", "?", "", tests=())
    scores = reward([DOUBLE] * 6 + [broken], texts)
    assert scores.rewards == [1, 1, 0, 0, 0, 0, 0]
    assert (scores.timeouts, scores.errors) == (1, 1)


def test_code_without_bubblewrap_is_refused_before_anything_runs(path):
    with pytest.raises(UserError, match="apt install bubblewrap"):
        CodeReward()
    assert CodeReward(isolation="process")([DOUBLE], ["def double(x): return x * 2"]).rewards == [1]


def mbpp(tests, solution="def f(x): return x", i=[0]):  # noqa: B006
    i[0] += 1
    return Problem(f"p{i[0]}", "?", "", solution, tests)


HOPELESS = {
    "are not Python (": mbpp(("assert f(1) ==",)),
    "use no name of the program": mbpp(("assert 1 == 1",)),
    "cannot be run: they need nothing_of_that_name, which is not installed": mbpp(("import nothing_of_that_name\nf(1)",)),
    "cannot be run: the tests pass a value of type function": mbpp(("assert f(lambda: 1)",)),
    "whose written solution fails": mbpp(("assert f(1) == 2",)),
    "whose written solution takes too long": mbpp(("f(1)",), "def f(x):\n    while True: pass"),
}


@pytest.mark.parametrize("isolation", ["bwrap", "process"])
def test_problems_that_no_program_can_solve_are_counted_before_a_run(request, caplog, isolation):
    if isolation == "bwrap":
        request.getfixturevalue("bubblewrap")
    reward = CodeReward(isolation, timeout_s=2)
    good = [mbpp(("assert f(1) == 1",)), mbpp(("assert f(1) == 1",), None)]
    check_problems(SumReward({"code": reward}, {"code": 1.0}, "code"), good)
    assert not caplog.records
    with caplog.at_level("WARNING"):
        check_problems(reward, [*good * 4, *HOPELESS.values(), mbpp(("assert f(1) == 3",))])
    (line,) = caplog.messages
    assert line.startswith("data: in 7 of 15 problems no completion can be correct: 1 whose tests are not Python")
    assert all(reason in line for reason in HOPELESS)
    assert "2 whose written solution fails" in line


@pytest.mark.parametrize("reason", [*HOPELESS][:2])
def test_a_data_set_that_no_program_can_solve_is_refused(reason):
    with pytest.raises(UserError, match="in 1 of 1 problems no completion can be correct: 1 whose tests ") as error:
        check_problems(CodeReward("process"), [HOPELESS[reason]])
    assert reason in str(error.value)
