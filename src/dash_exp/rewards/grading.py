r"""Compares a final answer with the gold answer: the part of the math reward that runs in worker processes.

An answer is read in steps: (1) `answers` finds its text; (2) `latex` brings it to one spelling; (3) what is one of a few
kinds is compared as that kind: a text, a time, a date or range, a choice, a number with its base (`notations`), a number
(`quantities`), a collection, whose elements are answers themselves, or a relation; (4) only what is left, a formula, is
parsed (`symbolic`). Text in words is never parsed, and an answer that cannot be read is never replaced by a part of it.

It does not import torch, so a worker starts in about a second.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from dash_exp.rewards import notations, quantities, symbolic
from dash_exp.rewards.answers import MATH_WORDS, TEXT_COMMAND, final_answer, is_prose, marked_answer
from dash_exp.rewards.latex import inside, plain_latex, plain_text, relation, split
from dash_exp.rewards.quantities import Quantity

LONGEST = 2_000  # characters of an answer
MOST_ELEMENTS = 30  # of a collection that is compared element by element

WORDS_BETWEEN = re.compile(r"\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")
UNIT_OF_FORMULA = re.compile(r"(?<=[\w})\]])\s*(?:\\text\s*\{([^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?|\s([a-zA-Z]{4,}))\.?\Z")
MATRIX = re.compile(r"\\begin\s*\{([pb]?matrix|array)\}(?:\s*\{[clr|]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
NAME = r"[a-zA-Z\\(|][\w\\{}()\[\],:;' /|]*?"  # x, a_1, f(x), \theta, (p,q)
ASSIGNED = re.compile(rf"\s*({NAME})\s*=\s*(?=[^=])")
ELEMENT_OF = re.compile(rf"\s*({NAME})\s*\\in(?![a-z])\s*")
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


class Collection(NamedTuple):
    """Several answers in one. `kind`: "list" or "set" (no order), "union", or the two brackets or the matrix around them."""

    kind: str
    elements: list[str]


def math_equal(answer: str, text: str) -> bool:
    """Whether the final answer of `text` is equivalent to the gold `answer`.

    It has no time limit of its own: `workers.Workers` kills a process that takes too long. Raises ValueError for a gold answer
    that cannot be read.
    """
    found = final_answer(text)
    if found is not None and len(found) <= LONGEST and same(_gold(answer), plain_latex(found)):
        return True
    if not gradable(answer):
        raise ValueError(f"the gold answer {answer!r} cannot be read")
    return False


@functools.lru_cache(maxsize=4096)
def gradable(answer: str) -> bool:
    """Whether a completion can be right with this gold answer. It is read, but not compared with anything."""
    return readable(_gold(answer))


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> str:
    return plain_latex(marked_answer(answer) or answer)


def math_answer(text: str) -> str | None:
    r"""The answer that `text` names, spelled the same for equal answers, so that they can be counted; None without one.

    Numbers have six places (0.5 and \frac{1}{2} are one answer), the order of a set does not count, expressions are expanded.
    Answers that are equal only after a simplification are spelled differently.
    """
    found = final_answer(text)
    if found is None or len(found) > LONGEST:
        return found
    return _spelling(plain_latex(found)) or None


def warm_up() -> None:
    """Called first in a worker process: imports and first use take seconds, which must not count towards a time limit."""
    assert math_equal(r"\sqrt{2}", r"\boxed{\frac{2}{\sqrt{2}}}")
    assert math_equal("x + 1", r"\boxed{1 + x}")
    assert math_answer("it is 0.5") == "0.5"


def same(gold: str, found: str) -> bool:
    """Whether two answers in plain LaTeX are equivalent."""
    gold, found = _values(_value_of_chain(gold), _value_of_chain(found))
    gold_text, found_text = plain_text(gold), plain_text(found)
    if gold_text == found_text != "":
        return True
    result = notations.same_times(gold_text, found_text)
    if result is not None and not any(map(collection, (gold, found))):
        return result
    if (result := notations.same_dates(gold_text, found_text)) is not None:
        return result
    letters, texts = zip(notations.choice(gold), notations.choice(found), strict=True)
    if all(letters):
        return letters[0] == letters[1] and (not all(texts) or same(*texts))
    if letters[0] and not texts[0] and (found_text.upper() == letters[0] or is_prose(found)):
        return found_text.upper() == letters[0]  # "a mystery" is no A with a unit
    if any(texts):
        return same(texts[0] or gold, texts[1] or found)
    gold_text, found_text = plain_text(_formula(gold)), plain_text(_formula(found))
    if (numbers_of := notations.series(gold_text)) or notations.is_series(found_text):
        return numbers_of == notations.series(found_text)
    if (result := notations.same_based(gold_text, found_text)) is not None:
        return result
    numbers = quantities.quantity(gold), quantities.quantity(found)
    if numbers[0] and numbers[1]:
        return quantities.same(numbers[0], numbers[1])
    groups = collection(gold), collection(found)
    if groups[0] or groups[1]:
        return _same_collections(groups[0] or Collection("list", [gold]), groups[1] or Collection("list", [found]))
    if (result := _same_relations(gold, found)) is not None:
        return result
    return _same_formulas(gold, found)


def readable(text: str) -> bool:
    """Whether an answer in plain LaTeX is of one of the kinds that can be compared."""
    text = _value_of_chain(text)
    plain = plain_text(text)
    if not re.search(r"\w|\\", plain):
        return False
    if quantities.quantity(text) or notations.has(plain) or is_words(text):
        return True
    if group := collection(text):
        return all(map(readable, group.elements))
    sides = relation(text)[1]
    if len(sides) > 1:
        return all(symbolic.parse(side) is not None for side in sides if side)
    return symbolic.parse(_formula(text)) is not None


def is_words(text: str) -> bool:
    r"""Whether an answer is text, which is compared as it is written: words, also in \text{}, or numbers side by side."""
    bare = WORDS_BETWEEN.sub(",", _formula(text))
    in_text = any(re.search(r"[^\W\d_]{2}|\d", content) for content in TEXT_COMMAND.findall(bare))
    return in_text or is_prose(bare, letters=3) or re.search(r"(?<![_^0-9])[0-9]+ +[0-9]", bare) is not None


@functools.lru_cache(maxsize=4096)
def collection(text: str) -> Collection | None:
    r"""The elements of an answer that has several: `"1, 2"`, `"\{1, 2\}"`, `"(1, 2]"`, `"[1,2) \cup [3,4)"`, `"1 \pm 2"`.

    An interval may be written as an inequality: `"1 < x \le 2" -> Collection("(]", ["1", "2"])`.
    """
    text = re.sub(r"\s+", " ", WORDS_BETWEEN.sub(",", text)).strip(" ,;")
    if inner := re.fullmatch(r"\\text\s*\{([A-Za-z0-9](?:\s?,\s?[A-Za-z0-9])+)\}", text):  # \text{A, B}
        text = inner[1]
    if wrapped := re.fullmatch(r"[(\[]\s*(\\begin.*\\end\s*\{[a-z]+\})\s*[)\]]", text, re.DOTALL):
        text = wrapped[1]
    text = _formula(text)
    if matrix := MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\(?:\[[0-9.]+ ?[a-z]{2}\])?", matrix[2]) if row.strip()]
        return Collection(f"matrix {len(rows)}", [cell.strip() for row in rows for cell in row.split("&")])
    if interval := _interval(text):
        return interval
    if element := ELEMENT_OF.match(text):
        text = text[element.end() :]
    elif len(assigned := split(text, "=")) == 2 and ASSIGNED.match(text) and len(split(text, ",;")) == 1:
        text = assigned[1]
    listed = [part for part in split(text, ";" if len(split(text, ";")) > 1 else ",") if part.strip(" .")]
    if len(listed) > 1:
        return Collection("list", listed)
    if len(union := split(text, r"\cup")) > 1:
        return Collection("union", union)
    opening, content, closing = inside(text)
    if opening:
        elements = split(content, ",;")
        if opening == "{":
            return Collection("set", elements)
        if len(elements) > 1:
            return Collection(opening + closing, elements)
    if text.count(r"\pm") == 1:
        return Collection("set", [text.replace(r"\pm", "+"), text.replace(r"\pm", "-")])
    return None


def _same_collections(gold: Collection, found: Collection) -> bool:
    if max(len(gold.elements), len(found.elements)) > MOST_ELEMENTS:
        return False
    if {gold.kind, found.kind} <= {"list", "set", "union"}:  # a repeated element counts once
        return all(any(same(g, f) for f in found.elements) for g in gold.elements) and all(
            any(same(g, f) for g in gold.elements) for f in found.elements
        )
    return (
        (gold.kind == found.kind or {gold.kind, found.kind} == {"list", "()"})  # "3, 4" is also written for (3, 4)
        and len(gold.elements) == len(found.elements)
        and all(same(g, f) for g, f in zip(gold.elements, found.elements, strict=True))
    )


def _interval(text: str) -> Collection | None:
    r"""An inequality of one name as interval: `"x \ge 2" -> "[2,\infty)"`; None where it is something else."""
    operators, sides = relation(text)
    if not operators or not all(op in FLIPPED for op in operators) or not all(sides):
        return None
    is_name = [re.fullmatch(NAME, side) is not None and not re.fullmatch(r"\\[a-z]+.*", side) for side in sides]
    if len(sides) == 2 and sides[0].startswith("-") and re.fullmatch(NAME, sides[0][1:]):  # -x > -1
        return _interval(f"{sides[0][1:]} {FLIPPED[operators[0]]} -({sides[1]})")
    if len(sides) == 2 and is_name[0] != is_name[1]:
        op, bound = (operators[0], sides[1]) if is_name[0] else (FLIPPED[operators[0]], sides[0])
        if op.startswith("<"):
            return Collection("(" + ("]" if "=" in op else ")"), [r"-\infty", bound])
        return Collection(("[" if "=" in op else "(") + ")", [bound, r"\infty"])
    if len(sides) == 3 and is_name[1] and operators[0][0] == operators[1][0]:
        if operators[0][0] == ">":
            operators, sides = operators[::-1], sides[::-1]
        return Collection(("[" if "=" in operators[0] else "(") + ("]" if "=" in operators[1] else ")"), [sides[0], sides[2]])
    return None


def _same_relations(gold: str, found: str) -> bool | None:
    """Equations and inequalities, equal where one is the other times a number. None where neither is one."""
    operators = [relation(text)[0] for text in (gold, found)]
    if not operators[0] and not operators[1]:
        return None
    if len(operators[0]) != 1 or len(operators[1]) != 1:
        return False
    flips = [op[0].startswith(">") for op in operators]
    kinds = [FLIPPED[op[0]] if flip else op[0] for op, flip in zip(operators, flips, strict=True)]
    if kinds[0] != kinds[1]:
        return False
    return symbolic.proportional(_difference(gold, flips[0]), _difference(found, flips[1]), positive=kinds[0] in FLIPPED)


def _difference(text: str, flip: bool) -> object:
    left, right = (symbolic.parse(side) for side in relation(text)[1])
    if left is None or right is None or not hasattr(left, "is_commutative") or not hasattr(right, "is_commutative"):
        return None
    return right - left if flip else left - right


def _values(gold: str, found: str) -> tuple[str, str]:
    r"""Both without what stands before a single `=`: a name that is on one side only or on both, or, where the gold answer has
    no relation, anything: `("5", "a + b = 5") -> ("5", "5")`.
    """
    sides = [relation(text)[1] for text in (gold, found)]
    if len(sides[0]) == 1:
        has_value = relation(found)[0] == ["="] and not _is_list(found) and not _is_to_solve(*sides[1])
        return gold, sides[1][1] if has_value else found
    names = [
        ASSIGNED.match(text) if len(parts) == 2 and not _is_list(text) else None
        for text, parts in zip((gold, found), sides, strict=True)
    ]
    if names[0] and len(sides[1]) == 1:
        return sides[0][1], found
    if names[0] and names[1] and plain_text(names[0][1]) == plain_text(names[1][1]):
        return sides[0][1], sides[1][1]
    return gold, found


def _is_to_solve(left: str, right: str) -> bool:
    r"""Whether an equation gives no value but is one to solve: a number is added to a variable, and on the right is 0."""
    terms = re.split(r"[+-]", re.sub(r"\([^()]*\)|\{[^{}]*\}", "", left))
    adds_number = any(re.fullmatch(r"\s*[0-9.]+\s*", term) for term in terms)
    return right.strip() == "0" and adds_number and re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", left) is not None


def _is_list(text: str) -> bool:
    return WORDS_BETWEEN.search(text) is not None or len(split(text, ",;")) > 1


def _value_of_chain(text: str) -> str:
    r"""The last side of a chain: `"x = 2 + 3 = 5" -> "x = 5"`, `"2 + 3 = 5" -> "5"`; without an approximation behind it:
    `"1/3 \approx 0.33" -> "1/3"`.
    """
    if "=" not in text and "\\approx" not in text:
        return text
    first, *approximations = re.split(r"\\approx(?![a-z])", text)
    is_name = re.fullmatch(NAME, first.strip()) and symbolic.value(symbolic.parse(first.strip())) is None  # not \sqrt{2}
    if approximations and (is_name or not first.strip()):
        first = f"{first} = {approximations[0]}"
    operators, parts = relation(first)
    if set(operators) != {"="} or _is_list(first):  # 7 != 6, or x = 1, y = 2
        return first
    if not re.search(r"[a-zA-Z]", parts[0]) and quantities.quantity(parts[-1]):
        return parts[-1]
    return f"{parts[0]} = {parts[-1]}" if len(parts) > 2 else first


def _same_formulas(gold: str, found: str) -> bool:
    numbers = quantities.quantity(gold), quantities.quantity(found)
    parsed = [_parsed(text, number) for text, number in zip((gold, found), numbers, strict=True)]
    if parsed[0] is None or parsed[1] is None:
        return False
    for number, other in zip(numbers, parsed[::-1], strict=True):
        if number and number.digits:  # a decimal for a constant
            constant = symbolic.value(other)
            return constant is not None and quantities.same(number, Quantity(constant))
    return symbolic.same(parsed[0], parsed[1])


def _parsed(text: str, number: Quantity | None) -> object:
    if number:
        return symbolic.rational(number.value)
    return None if is_words(text) else symbolic.parse(_formula(text))


def _formula(text: str) -> str:
    r"""A formula without a unit behind it: `"3\sqrt{2} \text{ cm}" -> "3\sqrt{2}"`. A number alone has been read before."""
    unit = UNIT_OF_FORMULA.search(text)
    if unit is None or re.search(r"\d", unit[1] or ""):
        return text
    words = re.findall(r"[a-z]+", (unit[1] or unit[2] or "").lower())
    is_unit = words and not any(word in quantities.NO_UNIT or word in MATH_WORDS for word in words)
    rest = text[: unit.start()].strip()
    return rest if is_unit and rest and not is_prose(rest, letters=3) else text


def _spelling(text: str) -> str:
    if based := notations.BASED.fullmatch(plain_text(text)):
        return "_".join(based.groups())
    if behind := notations.choice(text)[1]:
        return _spelling(behind)
    if series := notations.series(plain_text(_formula(text))):
        return "".join(map(str, series))
    if number := quantities.quantity(text):
        return symbolic.spelling_of_number(number.value / (100 if number.percent else 1))
    if group := collection(text):
        elements = [_spelling(element) for element in group.elements]
        if group.kind in ("list", "set", "union"):
            return f"{{{', '.join(sorted(set(elements)))}}}"
        brackets = group.kind if len(group.kind) == 2 else "[]"
        return f"{brackets[0]}{', '.join(elements)}{brackets[1]}"
    text = _value_of_chain(text)
    if name := ASSIGNED.match(text):
        return _spelling(text[name.end() :])
    formula = None if is_words(text) or relation(text)[0] else symbolic.parse(_formula(text))
    spelled = None if formula is None else symbolic.spelling(formula)
    return plain_text(text) if spelled is None else spelled
