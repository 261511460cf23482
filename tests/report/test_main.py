"""The command `python -m dash_exp.report`."""

import sys

import pytest

from dash_exp import report
from dash_exp.core.errors import UserError
from dash_exp.report import __main__ as command
from dash_exp.results.cells import load

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_the_command(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(sweep)])
    command.main()
    assert "2 arm(s), 6 of 6 cell(s) done" in capsys.readouterr().out
    first = (sweep / "report" / "cells.csv").read_text()
    assert first.splitlines()[0].startswith("cell,arm,algo,seed,status,error")
    assert len(first.splitlines()) == 7
    command.main()  # over its own files, and the folder of the report is no cell
    assert (sweep / "report" / "cells.csv").read_text() == first
    assert {p.name for p in (sweep / "report").iterdir()} == {"report.html", "report.md", "figures", "cells.csv"}


def test_folders_with_equals_signs_are_folders(sweep):
    cell = str(sweep / "algo=grpo,seed=0")
    assert command.parse([cell, "out=x", "target=0.5"]) == command.Command([cell], command.Path("x"), target=0.5)
    assert command.parse([cell]).out == sweep / "algo=grpo,seed=0" / "report"
    assert command.parse([cell, cell]).out == command.Path("report")
    assert command.parse(["wandb:me/p/g", "--wandb", "me/p"]) == command.Command(
        ["wandb:me/p/g"], command.Path("report"), wandb="me/p"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["out=x"], "DIR: is missing"),
        (["a", "target=2"], "target=2: is not an accuracy"),
        (["a", "target=x"], "target=x: is not an accuracy"),
        (["a", "--wandb"], "--wandb: is not of the form"),
        (["a", "--wandb", "me"], "--wandb me: is not of the form"),
        (["a", "--html"], "--html: is not an option"),
        (["a", "basline=x"], "basline=x: is neither a folder nor an option"),
    ],
)
def test_mistakes_on_the_command_line(arguments, says):
    with pytest.raises(UserError) as error:
        command.parse(arguments)
    assert str(error.value).startswith(says)


def test_what_wandb_gets_of_a_report_has_no_figures(sweep):
    text = command.brief(report.write(load([sweep]), sweep / "report").with_name("report.md").read_text())
    assert text.startswith("### Summary")
    assert "### Differences from grpo" in text
    assert "](figures/" not in text
    assert "# " not in text.replace("### ", "")
