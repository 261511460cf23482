"""The parts of a report, and its two forms: one self-contained HTML page, and Markdown.

Texts are plain here. Each form escapes them in its own way, because they may contain text that a model wrote.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Cell:
    """A value of a table, with a detail in smaller type (such as an interval) and the colour and line of an arm.

    `share`: from 0 to 1, shown as a bar under a value that is in no first column.
    """

    text: str
    detail: str = ""
    colour: str = ""
    dash: str = "-"
    share: float | None = None


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Items:
    """A list. With `warn` it is a highlighted box with that title. The text of an item is bold if the item has a detail."""

    items: Sequence[Cell]
    warn: str = ""
    kind: str = "items"


@dataclass(frozen=True)
class Table:
    """The first `words` columns are text; the others are numbers, aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    words: int = 1
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """`name` is the file name in figures/ without its ending; `alt` describes the figure in words."""

    name: str
    alt: str


@dataclass(frozen=True)
class Figures:
    figures: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Tabs:
    """Groups of figures of which one is shown at a time: (label, figures, note)."""

    name: str
    tabs: Sequence[tuple[str, Sequence[Figure], str]]
    kind: str = "tabs"


@dataclass(frozen=True)
class Sample:
    """Completions of an arm: for each its reward and advantage as text, and the completion."""

    arm: Cell
    completions: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Samples:
    """Completions of one problem by several arms."""

    problem: str
    answer: str
    samples: Sequence[Sample]
    kind: str = "samples"


Block = Paragraph | Items | Table | Figures | Tabs | Samples


@dataclass(frozen=True)
class Section:
    """`name` is its anchor, `short` its title in the navigation."""

    name: str
    short: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """`facts`: (label, value) at the top of the page. `created`: when and from what. `legend`: arms with colour and line.

    `reload_s`: the HTML page loads itself again after so many seconds; None: never.
    """

    title: str
    lead: str
    created: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    legend: Sequence[tuple[str, str, str]] = field(default_factory=list)
    reload_s: int | None = None


def to_html(document: Document, figures: Path) -> str:
    """The page, with the SVG files of the folder `figures` embedded."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": visible, "breakable": breakable}
    template = environment.get_template("report.html.j2")
    return template.render(document=document, embedded=lambda figure: _embedded(figures / f"{figure.name}.svg"))


def _embedded(svg: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def visible(text: Any) -> str:
    """Text without control characters and lone surrogates, which become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", str(text))


def breakable(text: str) -> Markup:
    """Escaped names such as `algo.train_sampler`, with line breaks allowed after a dot or an underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[._,=])", visible(text)))


def to_markdown(document: Document) -> str:
    """The report as Markdown; figures are linked as figures/NAME.svg."""
    parts = [f"# {_inline(document.title)}", _inline(document.lead), _inline(document.created)]
    parts.append(" · ".join(f"{_inline(label)}: {_inline(value)}" for label, value in document.facts))
    parts.append("![The arms and their colours](figures/legend.svg)")
    for section in document.sections:
        parts.append(f"## {_inline(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _inline(block.text)
        case Items():
            lines = [f"- {f'**{_inline(i.text)}** ' if i.detail else _inline(i.text)}{_inline(i.detail)}" for i in block.items]
            return "\n".join([f"**{block.warn}:**\n", *lines] if block.warn else lines)
        case Table():
            aligned = ["---" if i < block.words else "---:" for i in range(len(block.header))]
            rows = [[_inline(name) for name in block.header], aligned, *([_cell(c) for c in row] for row in block.rows)]
            table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            return f"{_inline(block.caption)}\n\n{table}" if block.caption else table
        case Figures():
            return _images(block.figures)
        case Tabs():
            shown = [(label, figs if i == 0 else figs[:1], note) for i, (label, figs, note) in enumerate(block.tabs)]
            parts = [f"**Against {label}** {_inline(note)}\n\n{_images(figs)}" for label, figs, note in shown]
            if any(len(figs) > 1 for _, figs, _ in block.tabs[1:]):
                parts.append("The other curves against these are in the HTML page that is written with this one.")
            return "\n\n".join(parts)
        case Samples():
            answer = f" (answer {_inline(block.answer)})" if block.answer else ""
            head = f"Problem{answer}:\n\n{_indented(block.problem)}"
            each = [
                f"{_inline(f'{s.arm.text}: {facts}')}\n\n{_indented(t)}" for s in block.samples for facts, t in s.completions
            ]
            return "\n\n".join([head, *each])


def _images(figures: Sequence[Figure]) -> str:
    return "\n".join(f"![{_inline(f.alt)}](figures/{f.name}.svg)" for f in figures)


def _cell(cell: Cell) -> str:
    return _inline(f"{cell.text} ({cell.detail})" if cell.detail else cell.text)


def _inline(text: str) -> str:
    """Text on one line, with all characters escaped that have a meaning in Markdown or HTML."""
    escaped = html.escape(" ".join(visible(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escaped)


def _indented(text: str) -> str:
    """An indented code block, which no text inside can end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))
