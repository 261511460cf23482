"""Regular expressions with a time limit, for rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

from dash_exp.core.errors import UserError


def compiled(pattern: str | None, flags: int = 0) -> regex.Pattern[str]:
    """The compiled pattern. UserError where it is not a regular expression."""
    try:
        return regex.compile(pattern, flags)
    except (regex.error, TypeError) as error:
        raise UserError(f"reward.pattern={pattern}", f"is not a regular expression ({error})", "Correct it") from error


def one_group(pattern: str | None) -> regex.Pattern[str] | None:
    """The compiled pattern; None for an empty one. UserError where it is not a regular expression with exactly one group."""
    found = compiled(pattern) if pattern else None
    if found and found.groups != 1:
        raise UserError(f"reward.pattern={pattern}", f"has {found.groups} groups", "Put one pair of ( ) around the answer")
    return found


def last_matches(pattern: regex.Pattern[str] | None, texts: Sequence[str], timeout_s: float) -> tuple[list[str | None], int]:
    """The last match of the group in each of B texts, without the white space around it, and how many searches took too long.

    None where there is no match, and where the search takes more than `timeout_s` seconds. Without a pattern the whole text. A
    match of no character does not count: `(.*)` has one at the end of every text.
    """
    if pattern is None:
        return [text.strip() for text in texts], 0
    last: list[str | None] = []
    timeouts = 0
    for text in texts:
        found = []
        try:
            found = [m[1] or "" for m in pattern.finditer(text, timeout=timeout_s) if m.end() > m.start()]
        except TimeoutError:
            timeouts += 1
        last.append(found[-1].strip() if found else None)
    return last, timeouts


LOOKS_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])|\\[BGK]")  # what a part of a pattern matches then depends on the rest


def group_of(pattern: regex.Pattern[str] | None) -> regex.Pattern[str] | None:
    """The part of the pattern inside its one group, as a pattern: `A:\\s*(\\S+) -> \\S+`. None where it cannot be taken alone.

    Letters are compared without their case, because a part around the group may say so.
    """
    if pattern is None:
        return None
    source = pattern.pattern
    start, depth, in_class = None, 0, False
    for token in re.finditer(r"\\.|\[\^?\]?|\]|\((?:\?(?:P?<(?![=!])\w+>)?)?|\)", source, re.DOTALL):
        text = token[0]
        if in_class or text.startswith("["):
            in_class = text != "]"
        elif text.startswith("("):
            if start is None and text != "(?":
                start, depth = token.end(), 0
            depth += start is not None
        elif text == ")" and start is not None:
            depth -= 1
            if depth == 0:
                inside = source[start : token.start()]
                return None if LOOKS_AROUND.search(inside) else _flexible(inside, pattern.flags)
    return None


def _flexible(source: str, flags: int) -> regex.Pattern[str] | None:
    try:
        return regex.compile(source, flags | regex.IGNORECASE | regex.DOTALL)
    except regex.error:
        return None


def can_give(group: regex.Pattern[str] | None, answer: str, timeout_s: float) -> bool:
    """Whether a pattern with this group can give the answer, white space around it aside; True where that is not known."""
    if group is None:
        return True
    text, spaces = answer.strip(), ("", " ", "\n")
    try:
        return any(group.fullmatch(f"{a}{text}{b}", timeout=timeout_s) for a in spaces for b in spaces)
    except TimeoutError:
        return True
