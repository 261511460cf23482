"""The page of a sweep that runs (`python -m dash_exp.report DIR --watch`): `report.html`, which loads itself again.

`reading` reads what has changed, `progress` says how far each cell is, `page` is the document. Here is when it is drawn: where
something has changed, at most every so many seconds, and for at most a twentieth of the time. The sweep itself is not touched:
nothing is locked or written in the folders of its cells.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dash_exp.core import files
from dash_exp.core.words import error_line
from dash_exp.report import comparison
from dash_exp.report.document import Document, to_html
from dash_exp.report.live import page
from dash_exp.report.live.progress import OPEN, Progress, of_cells
from dash_exp.report.live.reading import Reader, last_sign_s, refuse_what_is_none

LOOK_S = 2.0  # between two looks at the files
EVERY_S = 20  # between two pages, at least
SHARE = 0.05  # of the time that drawing may take
SETTLED_S = 60.0  # without a sign of life, after which a sweep is over whose cells are not all done, or not all known


def follow(
    folder: Path,
    out: Path,
    baseline: str | None = None,
    target: float | None = None,
    every_s: int = EVERY_S,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Renew the page in `out` until the sweep in `folder` is over. Waits where there is none yet.

    Raises UserError for a folder that can never be that of a sweep, and for a baseline that is not the name of an arm. Whatever
    ends it early, such as Ctrl-C, leaves a page that says so.
    """
    refuse_what_is_none(folder)
    with tempfile.TemporaryDirectory(prefix="dash_exp_") as figures:
        live = Live(folder, out, Path(figures), baseline, target, every_s, now)
        try:
            while not live.renew():
                sleep(LOOK_S)
        except BaseException:
            live.leave()
            raise


class Live:
    """The page in `out`. `renew` is called again and again; `now` gives seconds as `time.time` does."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        figures: Path,
        baseline: str | None = None,
        target: float | None = None,
        every_s: int = EVERY_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.out, self.figures, self.every_s, self.now = out, figures, every_s, now
        self.baseline, self.target = baseline, target
        self.reader = Reader(folder)
        self.document: Document | None = None  # what the page shows
        self._states: list[str] = []
        self._stale = False  # whether the page does not show the cells as they were read last
        self._next_s = 0.0  # not drawn before
        self._told: set[str] = set()

    def renew(self) -> bool:
        """Read what has changed, and draw the page where it is time. Returns whether the sweep is over: the page is then left
        for the report.
        """
        changed = self.reader.look()
        cells = self.reader.cells
        if not cells:
            self._tell(f"waiting for a sweep in {self.reader.folder}")
            return False
        if self.document is None and self.reader.is_listed:
            comparison.choose_baseline(self.reader.results(), self.baseline)  # a wrong name is refused before anything is drawn
        now_s = self.now()
        progress = of_cells(cells, now_s)
        states = [p.state for p in progress]
        self._stale = self._stale or changed or states != self._states
        self._states = states
        if self._is_over(progress, now_s):
            return True
        if self._stale and now_s >= self._next_s:
            self._draw(progress, now_s)
        return False

    def _is_over(self, progress: list[Progress], now_s: float) -> bool:
        """Whether the sweep has ended. Where it tries failed cells again, nothing runs for a moment between two of them."""
        if any(p.state in OPEN for p in progress):
            return False
        all_done = all(p.state == "done" for p in progress)
        return (all_done and self.reader.is_listed) or now_s - max(last_sign_s(p.cell.folder) for p in progress) > SETTLED_S

    def _draw(self, progress: list[Progress], now_s: float) -> None:
        """The page anew. Where a file is not as a run writes it, which it may be for a moment, the page stays."""
        said = datetime.datetime.fromtimestamp(now_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        choices = (self.figures, self.baseline, self.target, said, self.every_s)
        try:
            self.document = page.document(self.reader.results(), progress, self.reader.unread, *choices)
        except Exception as error:
            self._tell(f"the page stays as it was, for now: {error_line(error)}")
        else:
            self._write(self.document)
            self._stale = False
            self._tell(f"{self.out / 'report.html'}: renewed as cells progress. Ctrl-C ends this, not the sweep")
        end_s = self.now()
        self._next_s = end_s + max(self.every_s, (end_s - now_s) / SHARE)

    def leave(self) -> None:
        """The page says that nobody renews it any more, and does not load itself again."""
        if self.document is not None:
            said = datetime.datetime.fromtimestamp(self.now()).astimezone().strftime("%Y-%m-%d %H:%M:%S")
            words = self.document.created.partition(". ")[0]
            with suppress(OSError):
                self._write(replace(self.document, reload_s=None, created=f"{words}. Not renewed any more since {said}."))

    def _write(self, document: Document) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with files.writing_in(self.out):
            files.write_whole(self.out / "report.html", to_html(document, self.figures))

    def _tell(self, line: str) -> None:
        """Print a line once."""
        if line not in self._told:
            self._told.add(line)
            print(line, flush=True)
