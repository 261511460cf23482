"""What is printed while a test set is evaluated."""

import sys
from types import SimpleNamespace

from dash_exp.evaluation.progress import Progress

GREEDY = SimpleNamespace(correct=[True, False, False, True])


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    progress = Progress("in_dist", 100, line_every_s=0.0)
    for done in (40, 80, 100):
        progress(done, GREEDY)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  left ")[0] for line in lines] == [
        "in_dist 40/100  accuracy 50.0%",
        "in_dist 80/100  accuracy 50.0%",
    ]


def test_a_small_test_set_prints_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    progress = Progress("in_dist", 4)
    progress(4, GREEDY)
    progress.close()
    assert capsys.readouterr().out == ""
