r"""Numbers as people write them, read and compared exactly: 1,234.50, \frac{3}{4}, 1 1/4, 6.72 \times 10^{-5}, 18\%, 5 million.

Nothing here evaluates an expression, so every number takes microseconds, however large it is.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

# 12 digits, or 1,234,567; also with the spaces that LaTeX puts in their place (made plain by `grading.plain_latex`).
INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]{1,400})"
VALUE = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:[$€£]\s*)?(?:"
    rf"(?P<whole>[0-9]{{1,400}})\s+(?P<part>{INTEGER})\s*/\s*(?P<of>{INTEGER})"  # 1 1/4
    rf"|(?P<top>{INTEGER})\s*/\s*(?P<bottom>-?\s*{INTEGER})"
    rf"|(?P<decimal>(?:{INTEGER})?\.[0-9]{{1,400}}|{INTEGER}\.?(?![0-9]))"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,4})|\s*(?:\\times|\\cdot|[*x×·])\s*10\s*\^\s*\{?\s*(?P<power>[+-]?\s*[0-9]{1,4})\s*\}?)?)"
)
FRACTION = re.compile(rf"\\frac\s*\{{\s*(-?)\s*({INTEGER})\s*\}}\s*\{{\s*({INTEGER})\s*\}}")
REPEATING = re.compile(
    r"(?<![0-9])([0-9]{0,40})\.([0-9]{0,40})\\overline\s*\{?([0-9]{1,40})\}?"
)  # 0.1\overline{6}, which is 1/6
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "hundred": 100}
# A unit behind the value: words in \text{} or plain ones of two letters and more, a power, a degree sign.
UNIT = re.compile(
    r"(?:\s*\\text\s*\{([^{}\\$]*)\}|\s+([a-zA-Z]{3,})|\s*(?:[cmk]m|[mk]?g|ft|in|lb|oz|m?l|hr|yd|mi)(?![a-zA-Z])|\s*[/€°²³.])"
    r"(?:\s*\^\s*\{?[23]\}?)?"
)
PERCENT = re.compile(r"\s*(?:\\?%|(?:\\text\s*\{\s*)?(?i:per ?cent(?:age)?|pct)\s*\}?)\s*\.?\Z")
# Words of formulas.
FORMULA_WORDS = frozenset(
    ("and cdot cos cot csc exp inf infinity ln log mod or pi sec sin sqrt tan times").split()  # noqa: SIM905
)
# Words that change the value, or join it to another one: then it is no number with a unit.
NO_UNIT = (
    FORMULA_WORDS
    | set(SCALES)
    | frozenset(
        ("a.m am base cent gross half if minus not over p.m pair per percent plus pm score to").split()  # noqa: SIM905
    )
)


class Quantity(NamedTuple):
    """A number. `digits`: how many significant ones a decimal has, and `unit`: the value of its last one; None where exact."""

    value: Fraction
    digits: int | None = None
    unit: Fraction | None = None
    percent: bool = False


def quantity(text: str) -> Quantity | None:
    r"""The number that the whole text is, without its unit, which is not compared; None where it is something else.

    `"\frac{1}{2}" -> 1/2`, `"18 \text{ dollars per day}" -> 18`, `"5 million" -> 5000000`, `"5 \pi"` and `"3x"` -> None.
    """
    text = REPEATING.sub(_repeated, text, count=1)
    text = FRACTION.sub(lambda f: f" {f[1]}{f[2]}/{f[3]}", text).strip()
    text = re.sub(r"\A(-?)\s*(-?)\s*", lambda s: "-" if len(s[1] + s[2]) == 1 else "", text)  # -\frac{-1}{2}
    read = VALUE.match(text)
    if read is None:
        return None
    percent = PERCENT.match(text, read.end())
    scale = 1 if percent else _scale(text[read.end() :])
    if scale is None:
        return None
    number = _number(read)
    return number and number._replace(
        value=number.value * scale, unit=None if number.unit is None else number.unit * scale, percent=percent is not None
    )


def _repeated(decimal: re.Match[str]) -> str:
    before, after, period = decimal.groups()
    value = Fraction(int(before + after + period or 0) - int(before + after or 0), (10 ** len(period) - 1) * 10 ** len(after))
    return f"{value.numerator}/{value.denominator}"


def _number(read: re.Match[str]) -> Quantity | None:
    sign = -1 if read["sign"] == "-" else 1
    if read["decimal"] is None:
        whole = int(read["whole"] or 0)
        top, bottom = _int(read["part"] or read["top"]), _int(read["of"] or read["bottom"])
        return Quantity(sign * (whole + Fraction(top, bottom))) if bottom else None
    written = re.sub(r"[, ]", "", read["decimal"]).rstrip(".")
    power = int(re.sub(r"\s", "", read["e"] or read["power"] or "0"))
    value = sign * Fraction(written) * Fraction(10) ** power
    if "." not in written:
        return Quantity(value)
    places = len(written.partition(".")[2])
    return Quantity(value, len(written.replace(".", "").lstrip("0")), Fraction(10) ** (power - places))


def _int(digits: str) -> int:
    return int(re.sub(r"[, ]", "", digits))


def _scale(tail: str) -> int | None:
    """What the words behind a number multiply it with: 1 for a unit, 10^6 for "million"; None where it is no unit."""
    position, scale = 0, 1
    while tail[position:].strip():
        unit = UNIT.match(tail, position)
        if unit is None:
            return None
        words = re.findall(r"[a-zA-Z.]+", unit[1] or unit[2] or "")
        for word in (word.strip(".").lower() for word in words):
            if word in SCALES and position == 0:
                scale *= SCALES[word]
            elif word in NO_UNIT and word != "per":
                return None
        if re.search(r"[0-9]", unit[1] or ""):
            return None
        position = unit.end()
    return scale


def same(gold: Quantity, found: Quantity) -> bool:
    """Whether two numbers are equal; a percentage may be given as the number or as the fraction, but not 10% for 0.1%."""
    golds, founds = [gold], [found]
    if gold.percent and not found.percent:
        golds.append(_hundredth(gold))
    if found.percent and not gold.percent:
        founds.append(_hundredth(found))
    return any(_close(g, f) for g in golds for f in founds)


def _hundredth(q: Quantity) -> Quantity:
    return q._replace(value=q.value / 100, unit=None if q.unit is None else q.unit / 100)


def _close(a: Quantity, b: Quantity) -> bool:
    """Exact numbers must be equal. A decimal must agree to six places, and to six significant digits below 1 (1/3 is 0.333333
    and not 0.333); a decimal of eight and more digits also stands for every number that rounds to it.
    """
    difference = abs(a.value - b.value)
    if difference == 0 or (a.digits is None and b.digits is None) or 0 in (a.value, b.value):
        return difference == 0
    smaller = min(abs(a.value), abs(b.value))
    if difference > smaller:
        return False
    if difference <= Fraction(1, 2) * Fraction(10) ** (min(0, _magnitude(smaller) + 1) - 6):
        return True
    return any(q.digits is not None and q.unit is not None and q.digits >= 8 and difference <= q.unit / 2 for q in (a, b))


def _magnitude(value: Fraction) -> int:
    """The power of ten of the first digit, e.g. -1 for 1/3."""
    estimate = math.floor((value.numerator.bit_length() - value.denominator.bit_length()) * math.log10(2))
    while Fraction(10) ** (estimate + 1) <= value:
        estimate += 1
    while Fraction(10) ** estimate > value:
        estimate -= 1
    return estimate
