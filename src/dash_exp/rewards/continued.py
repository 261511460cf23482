"""The program in a completion of code that was begun, as in HumanEval: a base model goes on with the body of the function, an
instruct model writes the function again, or its body alone, in a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dash_exp.rewards.programs import FENCE, program_of

FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]+.*\n?", re.MULTILINE)  # must be the first line of a program
DOCSTRING = re.compile(r"^([ \t]+)\w?(?:\"\"\"|''')", re.MULTILINE)


def before(begun: str, name: str) -> str:
    """What stands before the function `name`, imports and helpers, in code that was begun. ValueError where it is not there."""
    found = list(_definition(name).finditer(begun))
    if not found:
        raise ValueError(f"has no function {name}")
    return begun[: found[-1].start()]


def continued(text: str, begun: str, name: str) -> str:
    """The program of a completion of `begun`, which ends with the head of the function `name` and its docstring.

    A function that the completion writes itself stands behind what `begun` has before it, so that nothing is missing that an
    answer leaves out, such as `from typing import List`. Else the completion is the body, behind `begun`, whose indentation it
    gets: models and their servers often lose that of the first line. The body ends with the first line at the margin, where
    base models go on with tests and other functions.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    indented = _depth(first.expandtabs(4)) > 1  # many tokenizers put one space before the first word of an answer
    is_body = indented and not FENCE.match(first.rstrip()) and not _definition(name).match(first.lstrip())
    program = text if is_body else program_of(text, [name])
    if not is_body and _definition(name).search(program):
        return "".join(FUTURE.findall(program)) + before(begun, name) + "\n" + FUTURE.sub("", program)
    docstring = DOCSTRING.search(begun, len(before(begun, name)))
    return begun.rstrip() + "\n" + _body(program, len(docstring[1].expandtabs(4)) if docstring else 4)


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", re.MULTILINE)


def _body(text: str, width: int) -> str:
    """The body of a function, indented by `width`."""
    lines = text.expandtabs(4).lstrip("\r\n").splitlines()
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return ""
    opens = lines[0].rstrip().endswith(":")
    depths = [_depth(line) for line in lines if line.strip()]
    # A first line at the margin has lost its indentation where the next one is deeper than it can be, else no line has any.
    indented = depths[0] > 0 or (len(depths) > 1 and depths[1] > (width if opens else 0))
    if indented:
        lines = list(_until_margin(lines))
    first, *rest = lines
    depths = [_depth(line) for line in rest if line.strip() and (_depth(line) or not indented)]  # else it is in a text
    block = min(depths, default=_depth(first))
    if opens and depths and block == depths[0]:  # all of it belongs to the first line
        block = _depth(first)
    moved = [" " * (_depth(line) + width - block) + line.lstrip(" ") if line.strip() else "" for line in rest]
    return "\n".join([" " * width + first.lstrip(" "), *moved, ""])


def _until_margin(lines: Sequence[str]) -> Iterator[str]:
    """The lines up to one at the margin that is not within a text or brackets."""
    in_text = False
    for i, line in enumerate(lines):
        if i > 0 and line[:1].strip() and not in_text and line[0] not in ")]}":
            return
        yield line
        if (line.count('"""') + line.count("'''")) % 2:
            in_text = not in_text


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
