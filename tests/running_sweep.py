"""A sweep that runs, as its files say: a test writes them, stage by stage, and moves the time."""

import json
import os
import shutil

from synthetic import write_cell

from dash_exp.report import live

CELLS = [("grpo", 0), ("dash", 0), ("grpo", 1), ("dash", 1)]
CLAIMS = [{"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "faster"}]
STUDY = {"question": "Which?", "baseline": ["algo=grpo"], "target": None, "paper": None, "claims": CLAIMS}


class RunningSweep:
    """A sweep of four cells, and its page. `clock_s`: the time, which only the test moves."""

    def __init__(self, folder, every_s=20):
        self.folder = folder
        self.clock_s = 1.7e9
        self.starts()
        (folder.parent / "drawn").mkdir()
        self.page = live.Live(folder, folder / "report", folder.parent / "drawn", every_s=every_s, now=self.now)

    def now(self):
        return self.clock_s

    def starts(self):
        self.folder.mkdir()
        listed = [{"folder": f"{algo}{seed}", "overrides": [f"algo={algo}", f"seed={seed}"]} for algo, seed in CELLS]
        (self.folder / "sweep.json").write_text(json.dumps({"claims": CLAIMS, "cells": listed}))

    def done(self, algo, seed, **how):
        """A cell that took 100 s (grpo) or 50 s (dash) for three outer steps, and 10 s for evaluation."""
        name = self.folder / f"{algo}{seed}"
        shutil.rmtree(name, ignore_errors=True)
        seconds = 100.0 if algo == "grpo" else 50.0
        write_cell(name, [f"algo={algo}", f"seed={seed}"], seconds=seconds, settings={"study": STUDY, "steps": 3}, **how)
        self._stamp(name)

    def runs(self, algo, seed, steps):
        """A cell after so many outer steps."""
        self.done(algo, seed)
        name = self.folder / f"{algo}{seed}"
        for file in ("result.json", "problems.csv"):
            (name / file).unlink()
        lines = (name / "metrics.csv").read_text().splitlines(keepends=True)
        (name / "metrics.csv").write_text("".join(lines[: steps + 2]))  # the header and row 0 as well
        self._stamp(name)

    def _stamp(self, name):
        for file in name.rglob("*"):
            os.utime(file, (self.clock_s, self.clock_s))

    def renewed(self, after_s=30.0):
        """The page after so many seconds: what it says at the top."""
        self.clock_s += after_s
        assert not self.page.renew()
        return dict(self.page.document.facts)

    def html(self):
        return (self.folder / "report" / "report.html").read_text()
