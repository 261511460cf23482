"""How the generated pages of the documentation are written: tables, and comments as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

WRITTEN = "<!-- Written by docs/generate.py from {}. Do not edit this page. -->"
IMAGE = re.compile(r"!\[(?P<alt>(?:\\.|[^\]\\])*)\]\(figures/(?P<name>.+?)\.svg\)")  # in the report.md of a sweep
# The search shows pages that explain before pages that list.
NOTICE = "---\nsearch:\n  boost: 0.5\n---\n\n" + WRITTEN


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


NAMES = re.compile(r"\[[\w=,. ]+\]|(?<![\w`])[+~]?[\w./@-]*(?:_|=|\w\.(?=[a-z]{2}))[\w./=,'~\[\]-]*[\w\]'](?![\w`])")
VALUES = re.compile(r"(^|[;:,.] )([a-z\d-][\w.-]*)(?= = )")


def prose(text: str) -> str:
    """A comment as Markdown: names of options and their values become code, and all else means itself."""
    text = "".join(p if p.startswith("`") else VALUES.sub(r"\1`\2`", p) for p in re.split(r"(`[^`]*`)", text))
    text = "".join(p if p.startswith("`") else NAMES.sub(r"`\g<0>`", p) for p in re.split(r"(`[^`]*`)", text))
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>\[\]{}\\])", r"\\\1", p) for p in pieces)


def paragraphs(description: str) -> str:
    """The description of a file as Markdown; indented lines are code."""
    return "\n".join(line if line.startswith("    ") else prose(line) for line in description.split("\n"))


def first_sentence(text: str) -> str:
    """`"Drops it. Then more." -> "Drops it."`; a full stop inside of a name or a number ends nothing."""
    paragraph = text.split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\w\w[\w)`>][.?])\s", paragraph, maxsplit=1)[0]


def page(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"
