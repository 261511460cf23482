"""From results to a conclusion: one page of HTML, Markdown, figures and a table. The command is `__main__.py`.

`comparison` has the numbers; `controls` what differed between the arms, `paper` the paper's numbers, `samples` completions;
`figures` and `panels` draw, `sections` and `words` say it, and `document` knows the two forms.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from dash_exp.report import sections
from dash_exp.report.document import to_html, to_markdown
from dash_exp.results.cells import Results


def write(results: Results, out: Path, baseline: str | None = None, target: float | None = None) -> Path:
    """Write the report into the folder `out`, over an earlier one, and return the page. Raises UserError for a wrong baseline.

    Whatever the cells lack is said in the report.
    """
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for earlier in [*figures.glob("*.svg"), *figures.glob("*.png")]:
        earlier.unlink()
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    document = sections.document(results, figures, baseline, target, made)
    results.table().to_csv(out / "cells.csv", index=False, errors="replace")
    (out / "report.md").write_text(to_markdown(document), encoding="utf-8")
    page = out / "report.html"
    page.write_text(to_html(document, figures), encoding="utf-8")
    return page
