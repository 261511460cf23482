"""Formulas: parsed by math-verify's parser for LaTeX, and compared without ever evaluating what would be too large.

Constants are compared to 40 significant digits, however small they are. Expressions with symbols are compared at a few points:
that takes milliseconds where a simplification may take minutes, and two different expressions that agree to 20 digits at all
of them are not met in practice. What cannot be evaluated (a tower of powers, an integral) is equal only to its own spelling.
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction
from typing import Any

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

LONGEST = 250  # characters of a formula; those in the gold answers of MATH have 60
DEEPEST = 5  # groups within each other: the parser takes several times as long for each more; golds of MATH have 4
MOST_NODES = 400
MOST_BITS = 200_000  # of a number that may be evaluated: 10,000! has 118,000
DIGITS = 40
POINTS = 4
# What the parser evaluates at once, however large, and what nobody can evaluate.
EAGER = re.compile(r"\\binom\D*[0-9]{5}|\\(?:gcd|lcm).*[!^]|\\int|\\lim")


class NotEvaluatedError(Exception):
    """An expression that is not evaluated: it is too large, or has no value, as x/0."""


@functools.lru_cache(maxsize=4096)
def parse(latex: str) -> Any | None:
    """The sympy object that the whole text is; None where it cannot be read."""
    from math_verify.grader import should_treat_as_complex
    from math_verify.parser import NormalizationConfig, latex2sympy, normalize_latex

    if len(latex) > LONGEST or _depth(latex) > DEEPEST or latex.count("|") > 8 or EAGER.search(latex):
        return None
    config = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
    try:
        is_real = not should_treat_as_complex(latex)
        return latex2sympy(normalize_latex(latex, config), is_real=is_real, normalization_config=None)
    except MemoryError:
        raise
    except Exception:  # whatever a parser raises on a text that is no formula
        return None


def rational(number: Fraction) -> Any:
    import sympy

    return sympy.Rational(number.numerator, number.denominator)


def same(a: Any, b: Any) -> bool:
    """Whether two parsed formulas are equal."""
    import sympy

    if a == b:
        return bool(a not in (sympy.nan, sympy.zoo))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return _same_sets(a, b)
    if any(x.has(sympy.oo, -sympy.oo) for x in (a, b)):
        return False
    try:
        a, b = _exact(a), _exact(b)
        if not a.free_symbols and not b.free_symbols:
            return _same_constants(a, b)
        return all(_near(x, y) for x, y in _values(a, b))
    except NotEvaluatedError:
        return False


def proportional(a: Any, b: Any, positive: bool) -> bool:
    """Whether a / b is the same number everywhere, and above 0 if `positive`: 2x - 4 = 0 and x - 2 = 0 are one equation."""
    import sympy

    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return False
    try:
        ratios = [x / y for x, y in _values(_exact(a), _exact(b)) if x != 0 and y != 0]
    except NotEvaluatedError:
        return False
    return bool(ratios) and all(_near(ratios[0], r) and (not positive or bool(r > 0)) for r in ratios)


def value(a: Any) -> Fraction | None:
    """A real constant to 40 digits; None for anything else."""
    import sympy

    if not isinstance(a, sympy.Expr) or a.free_symbols:
        return None
    try:
        number = _exact(a).evalf(DIGITS)
    except NotEvaluatedError:
        return None
    return Fraction(str(number)) if number.is_Float or number.is_Integer else None


def spelling(a: Any) -> str | None:
    """The same text for equal formulas, unless that takes a simplification: constants to six places, products expanded. None
    for a formula without a value, as x/0: all of these would be one.
    """
    import sympy

    number = value(a)
    if number is not None:
        return spelling_of_number(number)
    if (
        isinstance(a, sympy.Expr)
        and a.free_symbols
        and not any(p.exp.is_Integer and abs(p.exp) > 20 for p in a.atoms(sympy.Pow))
    ):
        a = sympy.expand(a)
    return None if isinstance(a, sympy.Expr) and a.has(sympy.nan, sympy.zoo) else str(a).strip()


def spelling_of_number(number: Fraction) -> str:
    """`1/2 -> "0.5"`, `0.3333333 -> "0.333333"`: six places, or six significant digits below 1; whole numbers in full."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{float(number):.6g}" if abs(number) < 1 else f"{round(float(number), 6):.15g}"


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[({\[]|[)}\]]", text):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    return deepest


def _exact(a: Any) -> Any:
    """The expression with decimals as fractions and with f(x) as one symbol. Raises NotEvaluatedError."""
    import sympy
    from sympy.core.function import AppliedUndef

    nodes = list(sympy.preorder_traversal(a))
    if len(nodes) > MOST_NODES or any(getattr(node, "is_Matrix", False) for node in nodes):
        raise NotEvaluatedError
    a = a.replace(AppliedUndef, lambda *args: sympy.Symbol("f:" + ",".join(map(str, args))))
    a = a.replace(lambda x: x.is_Float, lambda x: sympy.Rational(str(x)))
    _bits(a)
    a = a.doit()
    if a.has(sympy.nan, sympy.zoo):
        raise NotEvaluatedError
    return a


def _bits(a: Any) -> int:
    """At least the binary logarithm of every number that evaluating the expression meets; symbols are below 4."""
    import sympy

    if a.is_Rational:
        bits = int(abs(a.p).bit_length() + a.q.bit_length())
    elif not a.args:
        bits = 2
    elif isinstance(a, sympy.Integral | sympy.Limit | sympy.Derivative):
        raise NotEvaluatedError
    elif isinstance(a, sympy.Sum | sympy.Product):
        bits = _bits_of_terms(a)
    else:
        inside = [_bits(x) for x in a.args]
        if a.is_Pow or isinstance(a, sympy.exp | sympy.factorial | sympy.binomial | sympy.gamma):
            largest = list(zip(a.args, inside, strict=True))[1 if a.is_Pow else 0 :]
            bits = max(inside[0], 2) * max(_size(x, n) for x, n in largest)
        else:
            bits = sum(inside)
    if bits > MOST_BITS:
        raise NotEvaluatedError
    return bits


def _size(a: Any, bits: int) -> int:
    """At least the size of an exponent that has `bits`."""
    if not a.free_symbols:
        value = abs(a.evalf(5))
        if value.is_Float or value.is_Integer:
            return int(value) + 1
    if bits > 20:
        raise NotEvaluatedError
    return int(1 << bits)


def _bits_of_terms(a: Any) -> int:
    terms = 1
    for _, low, high in a.limits:
        if not (low.is_Integer and high.is_Integer and high - low < 200):
            raise NotEvaluatedError
        terms *= int(high - low) + 1
    if terms > 200:
        raise NotEvaluatedError
    return terms * (_bits(a.function) + 8)


def _same_constants(a: Any, b: Any) -> bool:
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    x, y = a.evalf(DIGITS), b.evalf(DIGITS)
    if 0 in (a, b):
        other = y if a == 0 else x
        return bool(other == 0 or getattr(other, "_prec", DIGITS) == 1)  # sympy's mark for: no digit is known, all cancel
    return _near(x, y)


def _values(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """Both expressions at points of different size and sign, those left out where one has no value."""
    import sympy

    symbols = a.free_symbols | b.free_symbols
    names = sorted({s.name for s in symbols})
    values = []
    for k in range(POINTS):
        point = {}
        for i, name in enumerate(names):
            part = ((i + 1) * 7548777 + (k + 1) * 5698403) % 10**7  # evenly spread, never equal
            point[name] = sympy.Rational((-1) ** (k // 2 * (i + 1)) * (10**7 + 2 * part), 10**7)
        pair = tuple(e.evalf(DIGITS, subs={s: point[s.name] for s in symbols}) for e in (a, b))
        if all(v.is_number and v.is_finite for v in pair):
            values.append(pair)
    if not values:
        raise NotEvaluatedError
    return values


def _near(x: Any, y: Any) -> bool:
    largest = max(abs(x), abs(y))
    return bool(largest < 1e-30 if not (x and y) else abs(x - y) <= largest * 1e-20)


def _same_sets(a: Any, b: Any) -> bool:
    import math_verify
    import sympy

    if not (isinstance(a, sympy.Set) and isinstance(b, sympy.Set)):
        return False
    return bool(math_verify.verify([a], [b], timeout_seconds=None, raise_on_error=True))
