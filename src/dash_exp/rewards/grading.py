"""The part of the math reward that runs in worker processes. It imports no torch, so a worker starts in about a second.

Equivalence of expressions is math-verify's. What is done here before: finding the final answer where the text names it, and
the kinds of answers that math-verify does not tell apart (words, number bases, percentages, very small decimals).
"""

from __future__ import annotations

import functools
import logging
import math
import re
from itertools import product
from typing import Any

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every unreadable completion

HASHES = re.compile(r"\n?####\s*(\S.*?)\s*\Z")  # GSM8K's last line
ANSWER_IS = re.compile(r"(?i:\banswer(?:\s+is\b|:)):?\s*(\S[^\n]*?)[\s.*]*\Z")
JOINT = re.compile(r"[\s$,;]*(?:and|or)?[\s$,;]*")  # between boxes that are one answer
OR = re.compile(r"(?<=[\d)}])\s*(?:,\s*)?\b(?:and|or)\s+(?=[\d.({\\-])")  # between numbers or formulas
DELIMITER = re.compile(r"(?<!\\)\$|\\[(\[]|\\boxed")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
PERCENT = re.compile(r"\s*(?:\\?%|(?:\\text\s*\{)?\s*(?i:per ?cent)\s*\}?)\s*\Z")
# A number and the words of its unit, none of which changes its value.
QUANTITY = re.compile(
    r"(?i)\s*((?:\\?\$)?\s*-?[\d.,/]*\d)\s+"
    r"(?:(?!(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|inf|infinity|and|or|over|mod|times|plus|minus|per ?cent|"
    r"dozen|hundred|thousand|million|billion|trillion)\b)[a-z]{2,}\s*)+"
)
# Numbers with words between them, as in `4 \text{ hours and } 30 \text{ minutes}`.
MIXED = re.compile(r"\d\s*\\(?:text|mbox|mathrm)\s*\{\s*(?!(?:,|and|or)\s*\})[^{}]*[a-z][^{}]*\}\s*\d")
BASED = re.compile(r"\s*([0-9A-Z]+)_\{?(\d+)\}?\s*")


def math_equal(answer: str, text: str) -> bool:
    """Whether the final answer of `text` is equivalent to the gold `answer`.

    Without time limits of its own: the pool around it kills what takes too long (`math.MathReward`).
    """
    found = final_answer(text)
    if found is None:
        return _verify(_gold_readings(answer, False), [text])
    if _plain(found) == _plain(answer) != "":
        return True
    bases = BASED.fullmatch(answer), BASED.fullmatch(found)
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if MIXED.search(found) and not MIXED.search(answer):
        return False  # math-verify would read the first number alone
    percent = PERCENT.search(found) is not None
    gold_percent = PERCENT.search(answer) is not None
    readings = _numbers(found) if percent and not gold_percent else _numbers(found)[:1]
    return _verify(_gold_readings(answer, percent), [f"\\boxed{{{r}}}" for r in readings])


def final_answer(text: str) -> str | None:
    """The answer that `text` names as its last: in \\boxed{}, after `####`, or as a formula after "answer is" to the end.

    Of several boxes the last counts, together with those that only a comma, "and" or "or" keeps apart from it:
    `"\\boxed{1} and \\boxed{-2}" -> "1,-2"`, but `"\\boxed{8}. No: \\boxed{7}" -> "7"`. None where nothing is named, or
    where it stands in a sentence that math-verify reads better.
    """
    boxes = boxed(text)
    if boxes:
        last = [boxes[-1]]
        while len(last) < len(boxes) and JOINT.fullmatch(text, boxes[-len(last) - 1][1], last[0][0]):
            last.insert(0, boxes[-len(last) - 1])
        return ",".join(content for _, _, content in last)
    if hashes := HASHES.search(text):
        named: re.Match[str] | None = hashes
        found = hashes[1].strip(" $*")
    else:
        named = ANSWER_IS.search(text)
        found = named[1].strip(" *") if named else text.strip()
    if not found or "\n" in found or DELIMITER.search(found):
        return None
    found = OR.sub(",", found)  # math-verify would read one of "7 or 8" alone
    one_word = named is not None and len(found.split()) == 1
    return found if one_word or QUANTITY.fullmatch(found) or not WORD.search(_prose(found)) else None


def boxed(text: str) -> list[tuple[int, int, str]]:
    """Every outermost \\boxed{...} that is closed: start, end and content. `"so \\boxed{\\frac{1}{2}}." -> [(3, 21, ...)]`."""
    found, position = [], 0
    while (start := text.find("\\boxed{", position)) >= 0:
        begin = start + len("\\boxed{")
        depth, position = 1, begin
        while depth and position < len(text):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
        if depth:
            break
        found.append((start, position, text[begin : position - 1]))
    return found


def math_answer(text: str) -> str | None:
    """The last answer in `text` in one spelling for all that are equal, so that answers can be counted; None without one.

    Numbers are compared to 6 decimals, as math-verify does (0.5 and \\frac{1}{2} are one answer), sets whatever their order,
    expressions after expansion. Forms that only a simplification would show to be equal stay apart.
    """
    import math_verify

    found = final_answer(text)
    form = text if found is None or PERCENT.search(found) else f"\\boxed{{{found}}}"
    parsed = math_verify.parse(form, parsing_timeout=None, raise_on_error=True)
    return _spelling(parsed[0]) if parsed else None


def warm_up() -> None:
    """First thing in a worker: imports and first use take seconds, which are no part of anyone's time limit."""
    assert math_equal("1", "\\boxed{\\frac{2}{2}}")
    assert math_answer("it is 0.5") == "0.5"


def _spelling(parsed: Any) -> str:
    import sympy

    if isinstance(parsed, sympy.Eq) and parsed.lhs.is_Symbol:  # x = 3
        return _spelling(parsed.rhs)
    if isinstance(parsed, sympy.Tuple):
        return f"({', '.join(map(_spelling, parsed.args))})"
    if isinstance(parsed, sympy.FiniteSet):
        return f"{{{', '.join(sorted(map(_spelling, parsed.args)))}}}"
    if isinstance(parsed, sympy.Expr) and parsed.is_number:
        if parsed.is_Integer:
            return str(parsed)
        number = parsed.doit().evalf(20)  # 50% is kept as a product until doit
        return f"{round(float(number), 6):.15g}" if number.is_finite and number.is_real else str(number)
    return str(sympy.expand(parsed) if isinstance(parsed, sympy.Expr) else parsed).strip()


def _verify(golds: list[str], texts: list[str]) -> bool:
    """Whether math-verify finds one of the gold readings equivalent to one of those of the text."""
    import math_verify
    import sympy

    for gold, text in product(golds, texts):
        parsed = _gold(gold)
        found = math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
        if math_verify.verify(
            parsed,
            found,
            float_rounding=_places(parsed),
            # (2, oo) and x > 2; but a relation that always holds is the set of everything, which sympy finds empty
            allow_set_relation_comp=sympy.S.EmptySet not in parsed,
            timeout_seconds=None,
            raise_on_error=True,
        ):
            return True
    return False


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> list[Any]:
    """The parsed gold answer; unreadable gold is an error of the data, never a wrong answer."""
    import math_verify

    for form in (f"\\boxed{{{answer}}}", answer):
        parsed = math_verify.parse(form, parsing_timeout=None)
        if parsed:
            return parsed
    raise ValueError(f"math-verify cannot read the gold answer {answer!r}")


def _gold_readings(answer: str, answered_in_percent: bool) -> list[str]:
    """A gold percentage may be given as the number and as the fraction; by an answer in percent, as the number alone."""
    return _numbers(answer)[: 1 if answered_in_percent else 2]


def _numbers(answer: str) -> list[str]:
    """The answer as math-verify is to read it: a quantity without its unit, a percentage as number and as fraction."""
    if quantity := QUANTITY.fullmatch(answer):
        return [quantity[1]]
    number = PERCENT.sub("", answer)
    return [answer] if number in (answer, "") else [number, f"\\frac{{{number}}}{{100}}"]


def _places(gold: list[Any]) -> int:
    """Decimal places to which decimals must agree: six, and more where that were fewer than five significant digits."""
    sizes = [abs(float(g)) for g in gold if getattr(g, "is_Number", False) and g.is_finite and g != 0]
    return max([6, *(4 - math.floor(math.log10(size)) for size in sizes)])


def _prose(text: str) -> str:
    """The text without LaTeX commands and what they set as text."""
    return re.sub(r"\\[a-zA-Z]+", " ", re.sub(r"\\(?:begin|end)\{[a-z]+\}", " ", TEXT_COMMAND.sub(" ", text)))


def _plain(text: str) -> str:
    """An answer without its dress: `"\\textbf{(C)}" -> "C"`, `"6:00 \\text{ PM}" -> "6:00 pm"`, `"1 2"` stays two numbers.

    Case counts where it may tell symbols apart, that is unless there are words.
    """
    bare = TEXT_COMMAND.sub(r"\1", text)
    bare = re.sub(r"\\[!,;:]|\$", "", bare).replace("\\ ", " ").strip(" \n\t*").rstrip(".")
    bare = re.sub(r"\s+", " ", bare)
    bare = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", bare)  # what is left keeps two words or numbers apart
    if WORD.search(bare):
        bare = bare.lower()
    return bare[1:-1] if re.fullmatch(r"\([A-Za-z]\)", bare) else bare
