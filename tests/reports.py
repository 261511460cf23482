"""Reading a report in tests: its sections, tables and texts."""

from dash_exp.report import sections, warnings
from dash_exp.report.document import Items, Paragraph, Table
from dash_exp.results.cells import load


def document_of(folder, **options):
    """The report of a sweep folder, with its figures in `report/figures`."""
    out = folder / "report" / "figures"
    out.mkdir(parents=True, exist_ok=True)
    return sections.document(load([folder]), out, options.get("baseline"), options.get("target"), "now")


def section(document, name):
    """A section by its anchor."""
    return next(s for s in document.sections if s.name == name)


def rows(document, name, which=0):
    """The rows of a table as texts, by their first column; the first of several with the same name."""
    tables = [b for b in section(document, name).blocks if isinstance(b, Table)]
    return {row[0].text: [c.text for c in row[1:]] for row in reversed(tables[which].rows)}


def texts(document, name):
    """The text of a section outside its tables."""
    found = []
    for block in section(document, name).blocks:
        found += [block.text] if isinstance(block, Paragraph) else []
        found += [f"{item.text} {item.detail}" for item in block.items] if isinstance(block, Items) else []
    return "\n".join(found)


def warnings_of(folder):
    """The warnings of a report, one a line."""
    return "\n".join(warnings.warnings(load([folder])))
