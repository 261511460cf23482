"""Durations and messages as text for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as minutes and hours: `75 -> "1:15"`, `3700 -> "1:01:40"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def first_line(text: str | None) -> str:
    """The first line that is not blank; empty where there is none."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def error_line(error: Exception) -> str:
    """The first line of an error's message, with the second where the first ends with a colon, or the error's type where it has
    no message; at most 300 characters.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:300] or type(error).__name__
