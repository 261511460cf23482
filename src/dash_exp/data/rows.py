"""Problems from the rows of a data set, and the checks of their fields. `readers` reads the rows.

Every function raises UserError that names the file and line, and the field, for what it cannot use. A field may be inside
another one: `a.b` is the field b of the object in a, and `a.0` the first item of the list in a.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.readers import Located, Row, rows_of

log = logging.getLogger(__name__)

Parse = Callable[[Row, str, str], Problem]  # from the three values of a `Located` to its problem

OWN_IDS = "Give each row its own id"


class NoAnswerError(UserError):
    """A row without an answer. It is left out; the error is raised only where no row has one."""


def load_problems(path: str, split: str, parse: Parse, subset: str | None = None, advice: str = OWN_IDS) -> list[Problem]:
    """The problems of one split, of a file, a folder or a data set of the hub (see `readers.rows_of`)."""
    return problems_of(rows_of(path, split, subset), parse, path, split, advice)


def problems_of(rows: Iterable[Located], parse: Parse, path: str, split: str, advice: str = OWN_IDS) -> list[Problem]:
    """Each row parsed, in order; rows without an answer are left out, and counted in one line of the log.

    UserError also where two problems have the same id, with this `advice`, or there is none at all. NoAnswerError where there
    are rows, and none has an answer.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    unanswered: list[tuple[str, NoAnswerError]] = []
    for row, where, name in rows:
        try:
            problem = parse(row, where, name)
        except NoAnswerError as error:
            unanswered.append((name, error))
            continue
        if problem.id in seen:
            raise UserError(where, f"has the id {problem.id!r} of {seen[problem.id]}", advice)
        seen[problem.id] = where
        problems.append(problem)
    if unanswered and not problems:
        raise unanswered[0][1]
    if unanswered:
        names = ", ".join(name for name, _ in unanswered[:5]) + (", ..." if len(unanswered) > 5 else "")
        log.warning("%s: rows without an answer are left out, %d of the %s split: %s", path, len(unanswered), split, names)
    if not problems:
        raise UserError(f"data.path={path}", f"its {split} split is empty", "Give at least one row")
    return problems


def value_of(row: Row, field: str, where: str) -> Any:
    """What the field holds. A name with dots may also be that of a column, where a table has its objects as columns."""
    if field in row:
        return row[field]
    value: Any = row
    path: list[str] = []
    for name in field.split("."):
        place = ", field ".join([where, *([".".join(path)] if path else [])])
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, Mapping):
            right = f"Its fields are {', '.join(map(repr, value)) or '(none)'}"
            if not path and value:  # of the row itself, where the settings name fields
                right += f"; settings such as data.prompt={next(iter(value))} say which are read"
            raise UserError(place, f"has no field {name!r}", right)
        else:
            raise UserError(place, f"is {value!r:.200} and has no field {name!r}", "Name a field that is there")
        path.append(name)
    return value


def text_of(row: Row, field: str, where: str) -> str:
    """The text or number in the field, as text: a small number as `0.00001`, never as `1e-05`. It must not be empty."""
    value = value_of(row, field, where)
    if isinstance(value, Mapping) and value:
        raise UserError(
            f"{where}, field {field}", f"is {value!r:.200}", f"Name a field inside it, as {field}.{next(iter(value))}"
        )
    is_text_or_number = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
    if not is_text_or_number or not str(value).strip():
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Write text or a number, not an empty value")
    if isinstance(value, float | Decimal) and not isfinite(value):
        raise UserError(f"{where}, field {field}", f"is {value}", "Write a finite number, or text")
    return clean(_plain(value), f"{where}, field {field}")


def _plain(value: str | float | Decimal) -> str:
    """A number without exponent, and without places where it is whole: tables keep whole numbers as 3.0 beside missing ones."""
    if not isinstance(value, float | Decimal):
        return str(value)
    return str(int(value)) if value == int(value) else format(Decimal(str(value)), "f")


def clean(text: str, where: str) -> str:
    """The same text. UserError for characters that no tokenizer can encode or that a line of a file cannot hold."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(where, "has half of a surrogate pair, which is not a character", "Correct the \\u escape")
    if "\0" in text:
        raise UserError(where, "has a NUL character", "Remove it")
    return text


def answer_of(row: Row, field: str, where: str) -> str:
    """The text in the field. Raises NoAnswerError where it is null or empty."""
    value = value_of(row, field, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NoAnswerError(f"{where}, field {field}", f"is {value!r}", "Write text or a number, not an empty value")
    return text_of(row, field, where)


def id_of(row: Row, field: str, name: str, where: str) -> str:
    """The text in the field `field`, the row's own id; `name` where it is absent, null or empty."""
    try:
        value = value_of(row, field, where)
    except UserError:
        return name
    return text_of(row, field, where) if value not in (None, "") else name


def texts(row: Row, field: str, where: str) -> list[str]:
    """The list of texts in the field; [] where it is absent or null."""
    value = row.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Write a list of texts")
    return [clean(text, f"{where}, field {field}") for text in value or []]
