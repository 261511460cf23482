"""Numbers as a report writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dash_exp.core.words import duration
from dash_exp.results.stats import Estimate
from dash_exp.results.summary import TEST_LABELS

Show = Callable[[float], str]


def percent(fraction: float) -> str:
    """`0.9053 -> "90.5"`"""
    return f"{100 * fraction:.1f}"


def points(fraction: float) -> str:
    """A difference in percentage points, with its sign: `-0.002 -> "−0.2"`, `0 -> "0.0"`."""
    shown = f"{100 * fraction:+.1f}".replace("-", "−")
    return "0.0" if shown in ("+0.0", "−0.0") else shown


def signed(value: float) -> str:
    """A difference with three digits and its sign: `-0.01234 -> "−0.0123"`"""
    return f"{value:+.3g}".replace("-", "−")


def relative(change: float | None) -> str:
    """A relative change in percent: `-0.8303 -> "−83.0%"`; a dash for None."""
    return "–" if change is None else f"{points(change)}%"


def times(ratio: float) -> str:
    """`0.566 -> "0.57"`, `0.0123 -> "0.012"`, `1234.5 -> "1,234"`"""
    if ratio >= 100:
        return f"{ratio:,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def seconds(value: float) -> str:
    """`12.34 -> "12.3 s"`, `154 -> "2:34"`"""
    return duration(value) if value >= 60 else f"{value:.1f} s"


def tokens(value: float) -> str:
    """A mean count: `29.2 -> "29.2"`, `80 -> "80"`"""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def whole(value: float) -> str:
    """`1234.0 -> "1,234"`"""
    return f"{value:,.0f}"


def probability(p: float | None) -> str:
    """`0.0312 -> "0.031"`, `0.0001 -> "< 0.001"`; a dash for None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def test_label(test: str) -> str:
    """`in_dist -> "in distribution"`; other test sets have their names."""
    return TEST_LABELS.get(test, test)


def unit(e: Estimate) -> Estimate:
    """The interval of a fraction, cut at 0 and 1."""
    cut = [None if end is None else min(1.0, max(0.0, end)) for end in (e.low, e.high)]
    return replace(e, low=cut[0], high=cut[1])


def span(e: Estimate | None, show: Show) -> str:
    """`"−0.9 to +0.5"`; a dash if there is no interval."""
    return "–" if e is None or e.low is None or e.high is None else f"{show(e.low)} to {show(e.high)}"
