"""Your own data: rows whose fields have any names, and whose prompts are texts or conversations."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.readers import Row
from dash_exp.data.rows import OWN_IDS, NoAnswerError, answer_of, clean, id_of, load_problems, text_of, value_of
from dash_exp.rewards.answers import boxed_answer

log = logging.getLogger(__name__)

Messages = tuple[tuple[str, str], ...]  # role and text of each

# A conversation that a CSV file, or a column of text, holds as the text of a list.
WRITTEN_LIST = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")


def load(
    path: str,
    split: str,
    prompt: str,
    answer: str | None,
    solution: str | None = None,
    extra: Sequence[str] = (),
    id: str | None = "id",
    subset: str | None = None,
    optional: Sequence[str] = (),
) -> list[Problem]:
    r"""The problems of one split.

    `path`: a folder with a file for each split (`SPLIT.jsonl`, `.json`, `.parquet` or `.csv`), a file, or a hub name (`subset`
    is then a configuration of it). `prompt`, `answer`, `solution`: the names of the fields; `a.b` is the field b of the object
    in a. `extra`: fields that become `Problem.extra`, by these names; those of them that are `optional` are None where they are
    not there. `id`: the field with an id, which need not be there.

    A prompt is a text or a list of messages, {"role": ..., "content": ...}. A solution is a text or a list of messages that
    ends with the assistant's; where it has the name of the prompt, the last message of that list is the solution and those
    before it are the prompt. An answer is a text, a number, or a list of one of them; of a text with a \boxed{} it is what the
    last box holds. Rows with an empty answer are left out; where `answer` is None or all rows are empty, all are kept, with the
    answer "". Raises UserError for data that cannot be read, and for messages with calls of tools.
    """
    with_tools: set[str] = set()

    def parse(row: Row, where: str, name: str, field: str | None = answer) -> Problem:
        if "tools" not in extra and row.get("tools"):
            with_tools.add(name)
        messages = _conversation(row, prompt, where)
        trace = _solution(row, solution, where) if solution else None
        if solution == prompt and messages:
            messages = messages[:-1]
        return Problem(
            id=id_of(row, id, name, where) if id else name,
            prompt=_asked(messages, f"{where}, field {prompt}") if messages else _text(row, prompt, where),
            answer=_answer(row, field, where) if field else "",
            solution=trace,
            messages=messages,
            extra={name: _value(row, name, where, name in optional) for name in extra},
        )

    advice = f"{OWN_IDS}, or write data.id=null, which makes the number of the row its id"
    try:
        problems = load_problems(path, split, parse, subset, advice)
    except NoAnswerError as error:
        log.warning("%s: no row of the %s split has an answer; the first: %s", path, split, error)
        problems = load_problems(path, split, partial(parse, field=None), subset, advice)
    if with_tools:
        said = "%s: %d rows of the %s split have tools, which are not read: the model is not told of them"
        log.warning(said, path, len(with_tools), split)
    return problems


def _conversation(row: Row, field: str, where: str) -> Messages:
    """The messages in the field; () where it does not hold a list."""
    value = value_of(row, field, where)
    if not isinstance(value, list):
        return ()
    if not value:
        raise UserError(f"{where}, field {field}", "is an empty list", "Give at least one message of the user")
    return tuple(_message(message, f"{where}, field {field}, message {i}") for i, message in enumerate(value, start=1))


def _message(message: object, where: str) -> tuple[str, str]:
    """Role and text of a message, whose content is a text or a list of parts, {"type": "text", "text": ...}."""
    if not isinstance(message, Mapping):
        raise UserError(where, f"is {message!r:.200}", 'Write {"role": "user", "content": "..."}')
    if call := next((name for name in ("tool_calls", "function_call") if message.get(name)), None):
        right = "Leave such rows out, or write the call into the content, as the model is to write it"
        raise UserError(f"{where}, field {call}", "is not empty, and calls of tools are not supported", right)
    role, content = text_of(message, "role", where), value_of(message, "content", where)
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in content]
        other = next((kind for kind in kinds if kind != "text"), None)
        if other is not None or None in kinds:
            raise UserError(
                f"{where}, field content", f"has a part of the type {other!r}", "Only parts of the type text are read"
            )
        content = "".join(text_of(part, "text", where) for part in content)
    if not isinstance(content, str):
        raise UserError(f"{where}, field content", f"is {content!r:.200}", "Write a text, or a list of parts of the type text")
    return role, clean(content, f"{where}, field content")


def _asked(messages: Messages, where: str) -> str:
    """The text of the user's last message, in a conversation that waits for the assistant."""
    if messages[-1][0] == "assistant":
        wrong = "ends with a message of the assistant, which the model is to write"
        raise UserError(where, wrong, "Remove it; where it is the written solution, name the field as data.solution as well")
    asked = [text for role, text in messages if role == "user"]
    if not asked or not asked[-1].strip():
        raise UserError(where, "has no text of the user" if asked else "has no message of the user", "Give one")
    return asked[-1]


def _text(row: Row, field: str, where: str) -> str:
    text = text_of(row, field, where)
    if WRITTEN_LIST.match(text):
        right = "Use JSON lines or parquet, where a list stays a list"
        raise UserError(f"{where}, field {field}", "is a list of messages that was written as text", right)
    return text


def _solution(row: Row, field: str, where: str) -> str:
    """A text, or the assistant's message at the end of a conversation."""
    messages = _conversation(row, field, where)
    if not messages:
        return text_of(row, field, where)
    role, text = messages[-1]
    if role != "assistant" or not text.strip():
        raise UserError(f"{where}, field {field}", "does not end with a text of the assistant", "Give it the written solution")
    return text


def _answer(row: Row, field: str, where: str) -> str:
    try:
        value = value_of(row, field, where)
    except UserError as error:
        right = f"{error.right}. Where the reward needs no answer, write data.answer=null"
        raise UserError(error.where, error.wrong, right) from error
    if value == []:
        raise NoAnswerError(f"{where}, field {field}", "is an empty list", "Write text or a number")
    if isinstance(value, list) and len(value) > 1:
        wrong = f"has {len(value)} items, and a problem has one answer"
        raise UserError(f"{where}, field {field}", wrong, f"Write one, or name one of them, as in {field}.0")
    answer = answer_of(row, f"{field}.0" if isinstance(value, list) else field, where)
    return boxed_answer(answer) or answer


def _value(row: Row, field: str, where: str, is_optional: bool) -> Any:
    """What the field holds, which a JSON file could hold as well; None where it is optional and not there."""
    try:
        value = value_of(row, field, where)
    except UserError:
        if is_optional:
            return None
        raise
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        wrong = f"is not text, a finite number, or a list or object of them ({error})"
        raise UserError(f"{where}, field {field}", wrong, "Change it, or leave it out of data.extra") from error
    return value
