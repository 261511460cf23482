"""The program in a completion, as language models write answers: prose, drafts, the program, examples of its use."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

# A line that opens a block, or closes it: indentation or the marker of a list's item; the fence; a language.
FENCE = re.compile(r"((?:[ \t]|[-*+][ \t]|\d{1,9}[.)][ \t])*+)(`{3,}+|~{3,}+)[ \t]*+([^`]*+)$")
PYTHON = re.compile(r"\W*(?:python|py)[\d.]*(?!\w)", re.IGNORECASE)
# Lines at the margin that define a function, a class or a variable, and those that import.
DEFINITION = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*+(?::[^=\n]*+)?=(?!=)", re.MULTILINE)
IMPORT = re.compile(r"^(?:from[ \t]+\S+[ \t]+)?import[ \t]+(.+)", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """Lines between two fences. `language`: what stands behind the opening one; None outside of blocks."""

    text: str
    language: str | None

    @property
    def is_python(self) -> bool:
        return self.language is not None and bool(PYTHON.match(self.language))


def program_of(text: str, names: Collection[str] = ()) -> str:
    """The program in a completion, of which the tests use `names`: the last fenced block that defines one of them.

    Blocks before it that define what it uses, or another of the names, are put in front. Blocks in Python or without a language
    count first, then those in another language, then text outside of blocks (a program in front of a stray fence). Where
    nothing defines a name: the last block in Python, else the last block, else the whole text.

    `"So:\\n```python\\nx = 1\\n```" -> "x = 1\\n"`. A block that is not closed, cut off by the token limit, counts too. The
    indentation that all lines share, as in an item of a list, is removed.
    """
    pieces = [piece for piece in _pieces(text) if piece.text.strip()]
    blocks = [piece for piece in pieces if piece.language is not None]
    likely = [piece for piece in blocks if piece.is_python or not piece.language]
    for group in (likely, blocks, [piece for piece in pieces if piece.language is None]):
        if program := _defining(names, [piece.text for piece in group]):
            return program
    python = [piece for piece in blocks if piece.is_python]
    return (python or blocks or [_piece([text], None)])[-1].text


def _pieces(text: str) -> Iterator[Piece]:
    """The blocks of a text, and what stands between them."""
    lines: list[str] = []
    opened: re.Match[str] | None = None
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line.rstrip())
        if opened and fence and not _closes(fence, opened):
            fence = None
        if fence is None:
            lines.append(line)
            continue
        yield _piece(lines, opened)
        lines = []
        opened = fence if not opened or fence[3] else None  # a fence with a language opens the next block
    yield _piece(lines, opened)


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether a fence ends the block: it is of the same kind, and not a line of a text within the program."""
    indent, own = (len(match[1].expandtabs()) for match in (fence, opened))
    return fence[2].startswith(opened[2]) and indent < own + 4


def _piece(lines: Sequence[str], opened: re.Match[str] | None) -> Piece:
    return Piece(_at_margin("".join(lines)), opened[3].strip() if opened else None)


def _at_margin(text: str) -> str:
    """Without the indentation that all lines share, and without that of the first line."""
    return textwrap.dedent(text).lstrip() if text.lstrip("\r\n")[:1].isspace() else text


def _defining(names: Collection[str], texts: Sequence[str]) -> str:
    """The last text that defines one of the names, behind those that define or import what it uses; "" where there is none."""
    missing, uses, taken = set(names), set[str](), list[str]()
    for text in reversed(texts):
        defined = {name for pair in DEFINITION.findall(text) for name in pair}
        # An example of use may import what the tests use, and has variables such as `result`.
        lent = {f or v for f, v in DEFINITION.findall(text) if f or v.isupper()} | _words(" ".join(IMPORT.findall(text)))
        if defined & missing or lent & uses:
            taken.insert(0, text)
            missing -= defined
            uses = (uses | _words(text)) - lent - set(names)
    return "\n".join(taken)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))
