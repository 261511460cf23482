"""Regular expressions with a time limit, for rewards."""

from __future__ import annotations

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

    None where there is no match, and where the search takes more than `timeout_s` seconds. Without a pattern the whole text.
    """
    if pattern is None:
        return [text.strip() for text in texts], 0
    last: list[str | None] = []
    timeouts = 0
    for text in texts:
        found = []
        try:
            found = pattern.findall(text, timeout=timeout_s)
        except TimeoutError:
            timeouts += 1
        last.append(found[-1].strip() if found else None)
    return last, timeouts
