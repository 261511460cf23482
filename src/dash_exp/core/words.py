"""Numbers and messages as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`75 -> "1:15"`, `3700 -> "1:01:40"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def first_line(text: str | None) -> str:
    """The first line that says something; empty where there is none."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")
