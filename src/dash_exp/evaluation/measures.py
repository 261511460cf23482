"""Formulas of evaluation: pass@k, avg@n, maj@n, and 95% intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dash_exp.core.errors import UserError
from dash_exp.core.intervals import CONFIDENCE, resampled_mean

Interval = tuple[float | None, float | None]


def pass_at_k(n: int, correct_P: ArrayLike, k: int) -> NDArray[np.float64]:
    """pass@k = 1 - C(n - c, k) / C(n, k), shape (P,): the chance that one of k completions is right.

    The k are drawn without replacement from the n of a problem; `correct_P` holds c, how many of the n are right. Chen et al.
    2021, arXiv 2107.03374, eq. 1: the unbiased estimate of 1 - (1 - p)^k. The quotient is the product of
    (n - c - i) / (n - i) over i < k, so nothing can overflow.
    """
    if not 1 <= k <= n:
        raise UserError(f"k={k}", f"pass@k is not defined with n={n} completions per problem", "Use 1 <= k <= n")
    wrong_P1 = n - np.asarray(correct_P)[..., None]
    i_K = np.arange(k)
    return 1.0 - np.prod(np.maximum(wrong_P1 - i_K, 0) / (n - i_K), axis=-1)


def avg_at_n(correct_PN: ArrayLike) -> NDArray[np.float64]:
    """avg@n, shape (P,): the fraction of each problem's completions that are correct. The same as pass@1."""
    return np.asarray(correct_PN, dtype=float).mean(axis=-1)


def majority_vote(answers_N: Sequence[str | None], correct_N: Sequence[bool]) -> float:
    """maj@n of one problem (self-consistency, arXiv 2203.11171): whether the most frequent answer is correct.

    A completion without an answer has no vote; without any vote it is 0. Where several answers are equally frequent it is the
    expected value of choosing one of them at random. An answer is as correct as its completions on average.
    """
    votes = Counter(answer for answer in answers_N if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most]
    graded = [[c for a, c in zip(answers_N, correct_N, strict=True) if a == answer] for answer in tied]
    return float(np.mean([np.mean(grades) for grades in graded]))


def wilson(successes: int, total: int) -> Interval:
    """95% interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001 on why not the normal one)."""
    interval = stats.binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(values_P: ArrayLike) -> Interval:
    """95% bootstrap interval of a mean over problems.

    Where all values are 0, or all 1, resampling shows no spread: there it is Wilson's interval.
    """
    values_P = np.asarray(values_P, dtype=float)
    if len(values_P) < 2:
        return None, None
    if (values_P == 0).all() or (values_P == 1).all():  # nothing varies, yet nothing is certain
        return wilson(int(values_P.sum()), len(values_P))
    return resampled_mean(values_P)


def check_counts(n: int, k: Sequence[int]) -> None:
    """Raise UserError where n or one of k cannot be used."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise UserError(f"n={n}", "is not a whole number of at least 0", "Write how many completions to sample, such as n=8")
    for value in k:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"k={value}", "is not a whole number of at least 1", "Write k=1, or several as k=[1,8]")
        if value > n:
            raise UserError(f"k={value}", f"is more than n={n} completions of each problem", f"Raise n to {value}, or lower k")
