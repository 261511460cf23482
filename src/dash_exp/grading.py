"""The part of the math reward that runs in worker processes. It imports no torch, so a worker starts in about a second."""

from __future__ import annotations

import functools
import logging
from typing import Any

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every unreadable completion


def math_equal(answer: str, text: str) -> bool:
    """Whether the last answer in `text` is equivalent to the gold `answer`, by math-verify.

    Without time limits of its own: the pool around it kills what takes too long (`reward.MathReward`).
    """
    import math_verify

    found = math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
    return bool(math_verify.verify(_gold(answer), found, timeout_seconds=None, raise_on_error=True))


def math_answer(text: str) -> str | None:
    """The last answer in `text` in one spelling for all that are equal, so that answers can be counted; None without one.

    Numbers are compared to 6 decimals, as math-verify does (0.5 and \\frac{1}{2} are one answer), sets whatever their order,
    expressions after expansion. Forms that only a simplification would show to be equal stay apart.
    """
    import math_verify

    found = math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
    return _spelling(found[0]) if found else None


def warm_up() -> None:
    """First thing in a worker: imports and first use take seconds, which are no part of anyone's time limit."""
    assert math_equal("1", "1")
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


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> list:
    """The parsed gold answer; unreadable gold is an error of the data, never a wrong answer."""
    import math_verify

    for form in (f"\\boxed{{{answer}}}", answer):
        parsed = math_verify.parse(form, parsing_timeout=None)
        if parsed:
            return parsed
    raise ValueError(f"math-verify cannot read the gold answer {answer!r}")
