"""The page of a sweep that runs, at several of its stages; the time is the test's."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
from reports import rows, section, texts
from running_sweep import CELLS, RunningSweep

from dash_exp import report
from dash_exp.core.errors import UserError
from dash_exp.core.process import INTERRUPTED
from dash_exp.report import __main__ as command
from dash_exp.report import live
from dash_exp.report.document import Tabs
from dash_exp.report.live import reading
from dash_exp.results.cells import load


@pytest.fixture
def running(tmp_path, no_drawing):
    return RunningSweep(tmp_path / "sweep")


def drawn_curves(sweep):
    """What the figures of the curves say in words, by the metric's title."""
    [tabs] = [block for block in section(sweep.page.document, "curves").blocks if isinstance(block, Tabs)]
    [(_, figures, _)] = tabs.tabs  # one axis, so that no choice is lost when the page loads itself again
    return {figure.alt.partition(",")[0]: figure.alt for figure in figures}


def test_the_page_from_the_first_cell_to_the_last(running):
    assert running.renewed() == {
        "cells done": "0 of 4", "running": "0", "failed": "0", "left": "4", "time left": "not known yet",
    }  # fmt: skip
    assert '<meta http-equiv="refresh" content="20">' in running.html()

    running.runs("grpo", 0, steps=1)
    assert running.renewed(0.0)["running"] == "0"  # not drawn more often than every 20 s
    running.clock_s += 20
    running.runs("grpo", 0, steps=1)
    facts = running.renewed(0.0)
    assert (facts["running"], facts["left"], facts["time left"]) == ("1", "3", "not known yet")
    assert rows(running.page.document, "cells")["grpo"] == ["0", "running", "1 of 3", "about 1:07"]  # 2 x 100 s / 3
    assert "grpo ends at 0.3" in drawn_curves(running)["reward of the sampled completions"]
    assert "grpo ends at 30" in drawn_curves(running)["accuracy in distribution"]  # no result.json names the test set yet
    assert "no accuracy yet" in texts(running.page.document, "summary")

    running.done("grpo", 0)
    running.runs("dash", 0, steps=2)
    facts = running.renewed()
    # dash, seed 0: 50 s / 3 for the last step, of which 30 s are over; the others 110 s, as the one that is done
    assert facts == {"cells done": "1 of 4", "running": "1", "failed": "0", "left": "2", "time left": "about 3:40"}
    assert "grpo ends at 75" in drawn_curves(running)["accuracy in distribution"]
    assert "dash ends at 0.6" in drawn_curves(running)["reward of the sampled completions"]
    assert rows(running.page.document, "arms")["grpo"][1] == "75.0"
    assert rows(running.page.document, "verdicts")["undecided"][1].startswith("not judged")

    for algo, seed in CELLS[:3]:
        running.done(algo, seed)
    running.runs("dash", 1, steps=3)
    assert running.renewed()["cells done"] == "3 of 4"
    assert "takes 0.50 times the training time" in rows(running.page.document, "verdicts")["undecided"][1]

    running.done("dash", 1)
    before = running.html()
    assert running.page.renew()  # over; the page is left for the report
    assert running.html() == before


def test_what_failed_and_why(running):
    running.done("grpo", 0)
    running.runs("dash", 0, steps=1)
    assert running.renewed()["failed"] == "0"
    running.done("dash", 0, status="failed", result={"error": "RuntimeError: no cheese\nmore"})
    assert running.renewed()["failed"] == "1"
    assert texts(running.page.document, "failed") == "dash, seed 0: RuntimeError: no cheese"
    assert rows(running.page.document, "cells")["dash"][1:] == ["failed", "3 of 3", "–"]
    running.runs("dash", 1, steps=1)
    later = running.clock_s + 5
    os.utime(running.folder / "dash0" / "config.yaml", (later, later))  # the same command tries it again
    assert running.renewed()["running"] == "2"
    facts = running.renewed(after_s=live.progress.SILENT_S + 60)  # killed before it removed the earlier result
    assert (facts["running"], facts["failed"], facts["silent"]) == ("0", "0", "2")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("metrics.csv", lambda text: text[:-7]),  # in the middle of a number
        ("metrics.csv", lambda text: text.splitlines()[0][:20]),
        ("metrics.csv", lambda text: ""),
        ("metrics.csv", lambda text: text.replace("0.3", "x")),
        ("config.yaml", lambda text: text[: text.index("study:") + 12]),
        ("config.yaml", lambda text: "algo:\n"),
        (".hydra/overrides.yaml", lambda text: text[:9]),
        ("result.json", lambda text: '{"status": "do'),
        ("result.json", lambda text: '{"status": "x"}'),
    ],
)
def test_half_written_files_do_not_end_it(running, file, damage):
    running.done("grpo", 0)
    running.runs("dash", 0, steps=2)
    running.renewed()
    whole = running.folder / "dash0" / file
    text = whole.read_text() if whole.exists() else ""
    whole.write_text(damage(text))
    facts = running.renewed()
    assert (facts["cells done"], facts["running"]) == ("1 of 4", "1")
    if text:
        whole.write_text(text)
    else:
        whole.unlink()
    assert running.renewed()["running"] == "1"
    assert rows(running.page.document, "cells")["dash"][2] == "2 of 3"


def test_a_section_that_fails_leaves_the_page_as_it_was(running, monkeypatch, capsys):
    running.runs("grpo", 0, steps=1)
    running.renewed()
    before = running.html()
    with monkeypatch.context() as patch:
        patch.setattr(live.page, "cells", lambda *_: {}["what no run writes"])
        running.runs("grpo", 0, steps=2)
        running.renewed()
        running.renewed()
    assert running.html() == before
    assert capsys.readouterr().out.count("the page stays as it was, for now: 'what no run writes'") == 1
    running.renewed()  # with the next chance, although nothing has changed since
    assert "2 of 3" in running.html()


def test_only_what_has_changed_is_read_again(running, monkeypatch):
    running.done("grpo", 0)
    running.runs("dash", 0, steps=1)
    running.renewed()
    read = []
    real, csv = reading.load_cell, pd.read_csv
    monkeypatch.setattr(reading, "load_cell", lambda folder: read.append(folder.name) or real(folder))
    monkeypatch.setattr(pd, "read_csv", lambda *of, **how: read.append("csv") or csv(*of, **how))
    shown = running.page.document
    running.renewed()
    assert (read, running.page.document is shown) == ([], True)  # nothing was drawn either
    running.runs("dash", 0, steps=2)
    running.renewed()
    assert read[0] == "dash0" and read.count("dash0") == 1 and "grpo0" not in read
    assert read.count("csv") == 1  # its metrics; problems.csv is not there yet
    assert running.page.document is not shown


def test_it_draws_for_a_twentieth_of_the_time(running, monkeypatch):
    running.runs("grpo", 0, steps=1)
    drawing = live.page.document

    def slow(*given):
        running.clock_s += 6.0  # so the next page comes after 6 / 0.05 = 120 s
        return drawing(*given)

    monkeypatch.setattr(live.page, "document", slow)
    running.renewed()
    running.runs("grpo", 0, steps=2)
    running.renewed(after_s=110.0)
    assert rows(running.page.document, "cells")["grpo"][2] == "1 of 3"
    running.renewed(after_s=15.0)
    assert rows(running.page.document, "cells")["grpo"][2] == "2 of 3"


def test_a_cell_without_a_sign_of_life(running):
    running.runs("grpo", 0, steps=1)
    running.renewed()
    facts = running.renewed(after_s=live.progress.SILENT_S + 60)  # ten steps of 33 s are longer than five minutes
    assert (facts["running"], facts.get("silent")) == ("0", "1")
    [row] = [row for row in section(running.page.document, "cells").blocks[1].rows if row[2].text == "silent"]
    assert row[2].detail == "nothing written for 6:30: in a long step, or killed"


@pytest.mark.parametrize("limit", ["seconds: 50", "sampled_tokens: 150"])  # of which 33.3 and 100 are used
def test_a_limit_ends_a_cell_sooner(running, limit):
    running.runs("grpo", 0, steps=1)
    config = running.folder / "grpo0" / "config.yaml"
    config.write_text(config.read_text().replace(f"{limit.partition(':')[0]}: null", limit))
    running.renewed(0.0)
    assert rows(running.page.document, "cells")["grpo"][3] == "about 0:17"


def test_a_sweep_is_over_where_failed_cells_are_not_tried_again(running):
    for algo, seed in CELLS:
        running.done(algo, seed, status="failed" if (algo, seed) == ("dash", 1) else "done")
    assert not running.page.renew()  # the sweep may try it again
    running.clock_s += live.SETTLED_S + 5
    assert running.page.renew()


def without_time(folder):
    """The files of a report, without when it was written."""
    read = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: b"\n".join(line for line in text.split(b"\n") if b"Created 2" not in line) for name, text in read.items()}


def test_it_ends_with_the_plain_report(running, monkeypatch, capsys):
    """Waits for the sweep, shows it, and writes what the command without --watch writes."""
    shutil.rmtree(running.folder)
    stages = [
        lambda: None,
        running.starts,
        lambda: running.runs("grpo", 0, steps=1),
        lambda: [running.done(algo, seed) for algo, seed in CELLS],
    ]
    follow = partial(live.follow, now=running.now, sleep=lambda seconds: stages.pop(0)())
    monkeypatch.setattr(live, "follow", follow)
    monkeypatch.setattr(os, "nice", lambda by: by)
    monkeypatch.setattr(sys, "argv", ["report", str(running.folder), "--watch", "every=1"])
    command.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"waiting for a sweep in {running.folder}"
    assert said[1].endswith("report.html: renewed as cells progress. Ctrl-C ends this, not the sweep")
    assert said[2].startswith("2 arm(s), 4 of 4 cell(s) done")
    watched = without_time(running.folder / "report")
    assert b'http-equiv="refresh"' not in watched["report.html"]
    report.write(load([running.folder]), running.folder / "report")
    assert without_time(running.folder / "report") == watched


def test_ctrl_c_leaves_a_page_that_says_so(running):
    running.runs("grpo", 0, steps=1)

    def interrupted(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.follow(running.folder, running.folder / "report", now=running.now, sleep=interrupted)
    assert 'http-equiv="refresh"' not in running.html()
    assert "Not renewed any more since" in running.html()
    assert "1 of 3" in running.html()


def test_the_command_ends_with_130_after_ctrl_c(tmp_path):
    arguments = [sys.executable, "-m", "dash_exp.report", str(tmp_path / "later"), "--watch"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline() == f"waiting for a sweep in {tmp_path / 'later'}\n"
    time.sleep(0.5)  # for a signal while it prints, it may print the line again
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == INTERRUPTED


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "b", "--watch"], "--watch: follows one sweep in a folder"),
        (["wandb:me/p/g", "--watch"], "--watch: follows one sweep in a folder"),
        (["a", "--watch", "--wandb", "me/p"], "--watch: does not go with --wandb"),
        (["a", "every=5"], "every=5: says how often --watch renews the page"),
        (["a", "--watch", "every=0"], "every=0: is not a number of seconds"),
        (["a", "--watch", "every=often"], "every=often: is not a number of seconds"),
    ],
)
def test_mistakes_on_the_command_line(arguments, says):
    with pytest.raises(UserError) as error:
        command.parse(arguments)
    assert str(error.value).startswith(says)


def test_what_can_never_be_a_sweep_is_refused(running, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    refused = {
        file: "file: is a file",
        file / "below": "file: is a file",
        tmp_path / "other": "other: holds other files and no sweep",
        tmp_path: f"holds other files and no sweep. Give {running.folder}.",
    }
    for folder, says in refused.items():
        with pytest.raises(UserError) as error:
            live.follow(folder, tmp_path / "out", sleep=lambda s: pytest.fail("it waits"))
        assert says in str(error.value)
    for folder in (tmp_path / "empty", running.folder):
        folder.mkdir(exist_ok=True)
        reading.refuse_what_is_none(folder)


def test_a_baseline_that_is_no_arm_is_refused_at_once(running):
    running.page.baseline = "rloo"
    with pytest.raises(UserError, match=r"baseline=rloo: is not the name of an arm"):
        running.page.renew()
    assert not (running.folder / "report").exists()
