"""Rows of a data set, from JSON lines in a folder or from the hub, and the checks of their fields.

Every function raises UserError that names the file and line, and the field, for what it cannot use.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Located = tuple[Row, str, str]  # a row, its place for messages ("FILE, line 3") and its id ("train/3")
Parse = Callable[[Row, str, str], Problem]  # from the three values of a `Located` to its problem


class NoAnswerError(UserError):
    """A row without an answer. It is left out; the error is raised only where no row has one."""


def load_problems(path: str, split: str, parse: Parse, subset: str | None = None) -> list[Problem]:
    """The problems of one split: of `SPLIT.jsonl` where `path` is a folder, otherwise of a data set of the hub."""
    return problems_of(_of_folder(path, split) if is_local(path) else hub_rows(path, split, subset), parse, path, split)


def problems_of(rows: Iterator[Located], parse: Parse, path: str, split: str) -> list[Problem]:
    """Each row parsed, in order; rows without an answer are left out, and counted in one line of the log.

    UserError also where two problems have the same id or there is none at all.
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
            raise UserError(where, f"has the id {problem.id!r} of {seen[problem.id]}", "Give each row its own id")
        seen[problem.id] = where
        problems.append(problem)
    if unanswered and not problems:
        raise unanswered[0][1]
    if unanswered:
        names = ", ".join(name for name, _ in unanswered[:5]) + (", ..." if len(unanswered) > 5 else "")
        log.warning("%s: rows without an answer are left out, %d of the %s split: %s", path, len(unanswered), split, names)
    if not problems:
        raise UserError(f"data.path={path}", f"its {split} split ({split}.jsonl in a folder) is empty", "Give at least one row")
    return problems


def is_local(path: str) -> bool:
    """Whether `path` is meant as a folder. Anything that is not of the form OWNER/NAME is, and so is a folder that exists."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1


def _of_folder(path: str, split: str) -> Iterator[Located]:
    folder = Path(path).expanduser()
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        raise UserError(f"data.path={path}", f"there is no file {file}", "Give a folder that has train.jsonl and test.jsonl")
    yield from read_rows(file, split)


def read_rows(file: Path, split: str) -> Iterator[Located]:
    """The rows of a file of JSON lines in UTF-8; empty lines are skipped, but count in the ids (`split`/LINE)."""
    try:
        lines = file.open("rb")
    except OSError as error:
        raise UserError(
            str(file), f"cannot be read ({error.strerror})", "Change its permissions, or give another file"
        ) from error
    with lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if number == 1:
                _refuse_kinds(line, str(file))
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _object(line, where), where, f"{split}/{number}"


def _refuse_kinds(start: bytes, file: str) -> None:
    """Refuse files that are not text in UTF-8, which their first bytes show."""
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{file}, line 1", "is compressed", "Unpack the file")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (b"\0" in start[:4] and any(start[:4])):
        raise UserError(f"{file}, line 1", "is not UTF-8 but UTF-16 or UTF-32", "Save the file as UTF-8")


def _object(line: bytes, where: str) -> Row:
    """The JSON object of a line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(where, f"is not UTF-8 ({error.reason}, byte {error.start + 1})", "Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(where, f"is not valid JSON ({error.msg}, column {error.colno})", "Correct the line") from error
    except RecursionError as error:
        raise UserError(where, "is nested too deeply", "Write one flat object per line") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise UserError(where, f"has a number that cannot be read ({error})", "Write it as text") from error
    if not isinstance(row, dict):
        list_ = "; not one list of all objects" if isinstance(row, list) else ""
        raise UserError(where, "is not a JSON object", f'Write one object per line: {{"field": value, ...}}{list_}')
    return row


def hub_rows(path: str, split: str, subset: str | None) -> Iterator[Located]:
    """The rows of one split of a data set of the hub (`datasets.load_dataset(path, name=subset, split=split)`)."""
    import datasets

    try:
        rows = datasets.load_dataset(path, name=subset, split=split)
    except Exception as error:  # whatever the hub client raises, the user can do the same two things
        raise UserError(
            f"data set {path}",
            f"could not be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            "Check the name and the network, or give a folder with train.jsonl and test.jsonl: data.path=DIR. With data=math "
            "also give data.gsm8k_path=DIR (or data.tests.out_dist=null); for another test set give data.tests.NAME.path=DIR",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, {split} row {number}", f"{split}/{number}"


def text_of(row: Row, field: str, where: str) -> str:
    """The text or number in the field, as text: a small number as `0.00001`, never as `1e-05`. It must not be empty."""
    if field not in row:
        raise UserError(where, f"has no field {field!r}", f"Its fields are {', '.join(map(repr, row)) or '(none)'}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Write text or a number, not an empty value")
    if isinstance(value, float) and not isfinite(value):
        raise UserError(f"{where}, field {field}", f"is {value}", "Write a finite number, or text")
    return _clean(format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value), field, where)


def _clean(text: str, field: str, where: str) -> str:
    """The same text. UserError for characters that no tokenizer can encode or that a line of a file cannot hold."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(
            f"{where}, field {field}", "has half of a surrogate pair, which is not a character", "Correct the \\u escape"
        )
    if "\0" in text:
        raise UserError(f"{where}, field {field}", "has a NUL character", "Remove it")
    return text


def answer_of(row: Row, field: str, where: str) -> str:
    """The text in the field. Raises NoAnswerError where it is null or empty."""
    if field in row and (row[field] is None or (isinstance(row[field], str) and not row[field].strip())):
        raise NoAnswerError(f"{where}, field {field}", f"is {row[field]!r}", "Write text or a number, not an empty value")
    return text_of(row, field, where)


def id_of(row: Row, field: str, name: str, where: str) -> str:
    """The text in the field `field`, the row's own id; `name` where it is absent, null or empty."""
    return text_of(row, field, where) if row.get(field) not in (None, "") else name


def texts(row: Row, field: str, where: str) -> list[str]:
    """The list of texts in the field; [] where it is absent or null."""
    value = row.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Write a list of texts")
    return [_clean(text, field, where) for text in value or []]
