"""Thoughts and answers between tags: what a completion of a thinking model, or of `prompt=think`, answers."""

from __future__ import annotations

THINK, UNTHINK = "<think>", "</think>"
OPEN, CLOSE = "<answer>", "</answer>"


def without_thought(text: str) -> str:
    """What stands behind the last </think>. A <think> that is not closed, cut off by the token limit, leaves nothing.

    `"<think>So 5. Wait.</think>\\n12" -> "\\n12"`; a text without these tags stays as it is.
    """
    said = text.rpartition(UNTHINK)[2]
    return "" if THINK in said else said


def in_answer_tag(text: str) -> str | None:
    """What stands between the last <answer> and </answer> of a text without thoughts; None without such a pair.

    `"<answer>13</answer> no, <answer> 12\\n</answer>." -> " 12\\n"`. An <answer> that is not closed is no pair.
    """
    before, closes, _ = text.rpartition(CLOSE)
    if not closes or OPEN not in before:
        return None
    return before.rpartition(OPEN)[2].partition(CLOSE)[0]


def answer_part(text: str) -> str:
    """The part of a completion that answers: what is in its last answer tag, else all that is no thought."""
    said = without_thought(text)
    tagged = in_answer_tag(said)
    return said if tagged is None else tagged
