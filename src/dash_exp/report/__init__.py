"""The report that compares the arms of a sweep: an HTML page, Markdown, figures and a table of the cells. The command is
`__main__.py`. May import every other room.

`comparison` computes the numbers, `differing` finds the settings that differ between arms, `warnings` says what to know first,
`paper` has the numbers of the paper, `samples` reads completions, `figures` draws. `sections` has one file for each section of
the report, `words` formats numbers, and `document` writes HTML and Markdown. `live` is the page of a sweep that runs.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from dash_exp.core import files
from dash_exp.report import comparison, sections
from dash_exp.report.document import to_html, to_markdown
from dash_exp.results.cells import Results


def write(results: Results, out: Path, baseline: str | None = None, target: float | None = None) -> Path:
    """Write the report into the folder `out`, replacing an earlier one. Returns the path of the HTML page.

    `baseline` and `target`: see `python -m dash_exp.report --help`. Files that cells lack are named in the report.
    Raises UserError if `baseline` is not the name of an arm.
    """
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with files.writing_in(out):  # at its end a sweep writes its report, and so does the command that watches it
        for earlier in [*figures.glob("*.svg"), *figures.glob("*.png")]:
            earlier.unlink()
        date = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
        document = sections.document(results, figures, baseline, target, date)
        results.table().to_csv(out / "cells.csv", index=False, errors="replace")
        judged = comparison.verdicts(results)
        (out / "claims.csv").unlink(missing_ok=True)
        if judged:
            sections.verdicts.as_table(judged).to_csv(out / "claims.csv", index=False, errors="replace")
        (out / "report.md").write_text(to_markdown(document), encoding="utf-8")
        page = out / "report.html"
        files.write_whole(page, to_html(document, figures))  # a browser may be reading it
    return page
