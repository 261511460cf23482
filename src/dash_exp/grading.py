"""The part of the math reward that runs in worker processes. It imports no torch, so a worker starts in about a second."""

from __future__ import annotations

import functools
import logging

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every unreadable completion


def math_equal(answer: str, text: str) -> bool:
    """Whether the last answer in `text` is equivalent to the gold `answer`, by math-verify.

    Without time limits of its own: the pool around it kills what takes too long (`reward.MathReward`).
    """
    import math_verify

    found = math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
    return bool(math_verify.verify(_gold(answer), found, timeout_seconds=None, raise_on_error=True))


def warm_up() -> None:
    """First thing in a worker: imports and first use take seconds, which are no part of anyone's time limit."""
    assert math_equal("1", "1")


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> list:
    """The parsed gold answer; unreadable gold is an error of the data, never a wrong answer."""
    import math_verify

    for form in (f"\\boxed{{{answer}}}", answer):
        parsed = math_verify.parse(form, parsing_timeout=None)
        if parsed:
            return parsed
    raise ValueError(f"math-verify cannot read the gold answer {answer!r}")
