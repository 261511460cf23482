"""Regular expressions with a time limit, for rewards."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from dash_exp.core.errors import UserError


def compiled(pattern: str | None, flags: int = 0) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, flags)
    except (regex.error, TypeError) as error:
        raise UserError(f"reward.pattern={pattern}", f"is no regular expression ({error})", "Mend it") from error


def one_group(pattern: str | None) -> regex.Pattern[str] | None:
    found = compiled(pattern) if pattern else None
    if found and found.groups != 1:
        raise UserError(f"reward.pattern={pattern}", f"has {found.groups} groups", "Put one pair of ( ) around the answer")
    return found


def last_matches(pattern: regex.Pattern[str] | None, texts: Sequence[str], timeout_s: float) -> tuple[list[str | None], int]:
    """The last match in each text, None without one and where it took too long; how many did. Without a pattern all of it."""
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
