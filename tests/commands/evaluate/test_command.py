"""The command line of an evaluation."""

import pytest

from dash_exp.commands.evaluate.command import Command, parse
from dash_exp.core.errors import UserError


def test_what_is_for_the_evaluation_and_what_for_the_configuration(tmp_path):
    run = tmp_path / "algo=x"  # as the folder of a cell
    run.mkdir()
    command = parse([str(run), "k=[4,1]", "limit=10", "checkpoint=best", "seed=3", "~data.tests.out_dist"])
    assert command == Command(str(run), ["eval.limit=10", "seed=3", "~data.tests.out_dist"], k=(1, 4), n=4, checkpoint="best")


MISTAKES = [
    (["x", "k=8", "n=4"], "k=8: is more than n=4"),
    (["x", "k=0"], "k=0: is not a whole number of at least 1"),
    (["x", "k=[1,x]"], "k=x"),
    (["x", "n=-1"], "n=-1: is not a whole number of at least 0"),
    (["x", "n=2", "temperature=0"], "temperature=0: is not a number above 0"),
    (["x", "n=2", "top_p=1.5"], "top_p=1.5: is not a number above 0 and at most 1"),
    (["x", "checkpoint=newest"], "last, best, base"),
    (["x", "--fast"], "--fast: is not of the form name=value"),
    (["x", "x"], "is not of the form name=value"),
    (["--fast", "x"], "--fast: is neither a run folder nor a model"),
    (["k=1"], "k=1: is neither a run folder nor a model"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        parse(arguments)
