r"""Answers of numbers and letters that are no formulas: times, dates, ranges, scores, numbers with their base, and the
choices of a multiple-choice problem. Each is compared by what it says: `2024-01-05` is not 2018, and `(B) 17` is not 17 b.
"""

from __future__ import annotations

import re
from fractions import Fraction

from dash_exp.rewards.answers import MONTHS, TEXT_COMMAND

TIME = re.compile(r"(\d{1,2})(?::([0-5]\d)|(?=\s*[ap]\.?\s?m\b))(?:\s*([ap])\.?\s?m\.?)?", re.IGNORECASE)
BASED = re.compile(r"([0-9A-Z]+)_\{?\(?(\d+)\)?\}?")

DATE = re.compile(  # January 5, 2024; 5 January 2024; 2024-01-05
    rf"(?P<month>{MONTHS}) (?P<day>\d\d?)(?:st|nd|rd|th)?(?:,? ?(?P<year>\d{{4}}))?"
    rf"|(?P<day2>\d\d?)(?:st|nd|rd|th)? (?:of )?(?P<month2>{MONTHS})(?:,? ?(?P<year2>\d{{4}}))?"
    r"|(?P<year3>\d{4})-(?P<month3>\d\d?)-(?P<day3>\d\d?)",
    re.IGNORECASE,
)

INTEGER = r"\d{1,3}(?:,\d{3})+|\d+"
NUMBER = rf"(?:{INTEGER})(?:\.\d+)?"
DASH = r"[-\u2010-\u2014]+"
# Three parts and more, or a year, a month and a day: no difference, fraction or product, whoever wrote it.
PARTS = rf"-?{NUMBER}(?:(?:/{NUMBER}){{2,}}|(?::{NUMBER}){{2,}})|\d+(?:\.\d+){{2,}}|\d{{4}}(?:{DASH}\d\d?){{2}}"
# A gold answer is not an open difference, so there 3-5 is a range or a score as well.
SERIES = re.compile(rf"{PARTS}|-?{NUMBER}(?:{DASH}{NUMBER})+|-?{NUMBER}(?:{DASH}| ?to ?)-?{NUMBER}")
PARTS_ALONE = re.compile(PARTS)
PART = re.compile(rf"({INTEGER})(\.\d+)?|([^\d]+)")

LABEL = r"(?:(?i:option|choice)\s+)?"
LETTER = re.compile(rf"{LABEL}(?:\(([A-J])\)|([A-J]))[.:]?")
LETTER_AND_TEXT = re.compile(rf"{LABEL}(?:\(?([A-J])(?:\)[.:]?|[.:])\s+|\(([A-J])\)(?=\d))(\S.*)", re.DOTALL)
# What goes on as a formula, (A) + 3, or names a second choice, (A) and (B), has no text of a choice there.
NO_TEXT = re.compile(
    r"\A(?:[-+*/^=<>]\s|[,;]|\\(?:cup|cap|times|cdot|pm)(?![a-z]))"
    r"|(?:\A|[\s,;{])(?:\(?[A-Z][).:](?=[\s,;{}]|\Z)|(?:and|or)\s+\(?[A-Z]\)?[).:]?(?=[\s,;{}]|\Z))"
)


def has(text: str) -> bool:
    """Whether the whole answer is a time, a date, a range, a score or a number with its base."""
    return series(text) is not None or any(notation.fullmatch(text) for notation in (TIME, DATE, BASED))


def same_times(gold: str, found: str) -> bool | None:
    """Whether two times of day are equal, by hour and minute; without "a.m." or "p.m." on one side, the other decides.

    None where neither is one for certain: 3:05 alone may be a ratio.
    """
    times = TIME.fullmatch(gold), TIME.fullmatch(found)
    if times[0] is None or times[1] is None:
        return False if any(time and time[3] for time in times) else None
    (hour, minute, half), (other_hour, other_minute, other_half) = (time.groups(default="") for time in times if time)
    if int(minute or 0) != int(other_minute or 0):
        return False
    if half and other_half and half.lower() != other_half.lower():
        return False
    hours = {_hour(hour, half)} if half or not other_half else {int(hour), _hour(hour, other_half)}
    others = {_hour(other_hour, other_half)} if other_half or not half else {int(other_hour), _hour(other_hour, half)}
    return not hours.isdisjoint(others)


def _hour(hour: str, half: str) -> int:
    return int(hour) % 12 + (12 if half in ("p", "P") else 0) if half else int(hour)


def same_dates(gold: str, found: str) -> bool | None:
    """Whether two dates are equal; where one has no year, by day and month. None where neither is one with the month's name."""
    dates = DATE.fullmatch(gold), DATE.fullmatch(found)
    if not any(date and not date["year3"] for date in dates):
        return None
    if dates[0] is None or dates[1] is None:
        return False
    (day, month, year), (other_day, other_month, other_year) = (_date(date) for date in dates if date)
    return (day, month) == (other_day, other_month) and (year is None or other_year is None or year == other_year)


def _date(date: re.Match[str]) -> tuple[int, int, int | None]:
    day, month, year = (date[name] or date[f"{name}2"] or date[f"{name}3"] for name in ("day", "month", "year"))
    return (
        int(day),
        int(month) if month.isdecimal() else MONTHS.split("|").index(month.capitalize()) + 1,
        int(year) if year else None,
    )


def series(text: str) -> tuple[Fraction | str, ...] | None:
    """The numbers of a date, a range or a score and what stands between them: `"2024-01-05" -> (2024, "-", 1, "-", 5)`.

    Every dash is one dash, "3 to 5" is 3-5, and so is 3-5%. None where the text is something else.
    """
    text = re.sub(r"\\?%", "", text)
    if not SERIES.fullmatch(text):
        return None
    if re.fullmatch(r"\d+(?:\.\d+){2,}", text):  # 192.168.0.1
        return tuple(Fraction(part) if part != "." else part for part in re.findall(r"\d+|\.", text))
    sign, text = ("-", text[1:]) if text.startswith("-") else ("", text)
    parts: list[Fraction | str] = []
    for integer, decimals, between in PART.findall(text):
        if not between:
            parts.append(Fraction(integer.replace(",", "") + decimals))
        elif between in ("/", ":"):
            parts.append(between)
        else:  # 3--5 is a range with two dashes; -5--3 one with a second sign, as is -5 to -3
            negative = between.endswith("-") and ("to" in between or (sign and len(between) > 1))
            parts += ["-", "negative"] if negative else ["-"]
    return (sign, *parts)


def is_series(text: str) -> bool:
    """Whether an answer cannot be meant as a formula; of `3-5` alone that is not known."""
    return PARTS_ALONE.fullmatch(text) is not None


def same_based(gold: str, found: str) -> bool | None:
    r"""Numbers such as 52_8, digit by digit; the base may be left out in the answer. None where neither is one."""
    bases = BASED.fullmatch(gold), BASED.fullmatch(found)
    if bases[0] is None:
        return None if bases[1] is None else bases[1].groups() == (gold, "10")
    return bases[0].groups() == bases[1].groups() if bases[1] else bases[0][1] == found


def choice(text: str) -> tuple[str, str]:
    r"""The letter of a choice, and the text behind it: `"\text{(B) }17" -> ("B", "17")`, `"option B" -> ("B", "")`.

    Two empty strings where the answer is something else, or names two choices.
    """
    bare = TEXT_COMMAND.sub(lambda command: command[1] + " ", text).strip()
    if alone := LETTER.fullmatch(bare):
        return alone[1] or alone[2], ""
    found = LETTER_AND_TEXT.fullmatch(bare)
    if found is None or NO_TEXT.search(found[3]):
        return "", ""
    return found[1] or found[2], found[3]
