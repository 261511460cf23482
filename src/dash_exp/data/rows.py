"""Rows of a data set: JSON lines of a folder, or a data set of the hub; and the checks of what stands in their fields."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem

Row = Mapping[str, Any]
Located = tuple[Row, str, str]  # a row, where it stands ("FILE, line 3") and its id ("train/3")
Parse = Callable[[Row, str, str], Problem]  # what is in a `Located` -> Problem


def load_problems(path: str, split: str, parse: Parse, subset: str | None = None) -> list[Problem]:
    return problems_of(_of_folder(path, split) if is_local(path) else hub_rows(path, split, subset), parse, path, split)


def problems_of(rows: Iterator[Located], parse: Parse, path: str, split: str) -> list[Problem]:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for row, where, name in rows:
        problem = parse(row, where, name)
        if problem.id in seen:
            raise UserError(where, f"has the id {problem.id!r} of {seen[problem.id]}", "Ids must be unique")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise UserError(f"data.path={path}", f"its {split} split ({split}.jsonl in a folder) is empty", "Give at least one row")
    return problems


def is_local(path: str) -> bool:
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1


def _of_folder(path: str, split: str) -> Iterator[Located]:
    folder = Path(path).expanduser()
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        raise UserError(f"data.path={path}", f"there is no file {file}", "Give a folder that holds train.jsonl and test.jsonl")
    yield from read_rows(file, split)


def read_rows(file: Path, split: str) -> Iterator[Located]:
    try:
        lines = file.open("rb")
    except OSError as error:
        raise UserError(str(file), f"cannot be read ({error.strerror})", "Change its rights, or give another file") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if number == 1:
                _refuse_kinds(line, str(file))
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _object(line, where), where, f"{split}/{number}"


def _refuse_kinds(start: bytes, file: str) -> None:
    """Files that are no text in UTF-8 at all, told by how they begin."""
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{file}, line 1", "is compressed", "Unpack the file")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (b"\0" in start[:4] and any(start[:4])):
        raise UserError(f"{file}, line 1", "is not UTF-8 but UTF-16 or UTF-32", "Save the file as UTF-8")


def _object(line: bytes, where: str) -> Row:
    """The JSON object of a line. Raises UserError for all that is none, and for what no tokenizer can read."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(where, f"is not UTF-8 ({error.reason}, byte {error.start + 1})", "Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(where, f"is not valid JSON ({error.msg}, column {error.colno})", "Mend the line") from error
    except RecursionError as error:
        raise UserError(where, "is nested too deeply", "Write one flat object a line") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise UserError(where, f"holds a number that cannot be read ({error})", "Write it as text") from error
    if not isinstance(row, dict):
        list_ = "; a file with one list of objects is to be written line by line" if isinstance(row, list) else ""
        raise UserError(where, "is not a JSON object", f'Write one object a line: {{"field": value, ...}}{list_}')
    return row


def hub_rows(path: str, split: str, subset: str | None) -> Iterator[Located]:
    import datasets

    try:
        rows = datasets.load_dataset(path, name=subset, split=split)
    except Exception as error:  # whatever the hub client raises, the user needs the same two answers
        raise UserError(
            f"data set {path}",
            f"could not be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            "Check the name and the network, or give a folder with train.jsonl and test.jsonl: data.path=DIR, with data=math "
            "also data.gsm8k_path=DIR (or data.tests.out_dist=null), for a further test set data.tests.NAME.path=DIR",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, {split} row {number}", f"{split}/{number}"


def text_of(row: Row, field: str, where: str) -> str:
    if field not in row:
        raise UserError(where, f"has no field {field!r}", f"Its fields are {', '.join(map(repr, row)) or '(none)'}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Give text or a number that is not empty")
    if isinstance(value, float) and not isfinite(value):
        raise UserError(f"{where}, field {field}", f"is {value}", "Give a finite number, or text")
    return _clean(str(value), field, where)


def _clean(text: str, field: str, where: str) -> str:
    """The text, unless no tokenizer can encode it or no file can hold it as a line of text."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}, field {field}", "holds half of a surrogate pair, which is no character", "Mend the escape")
    if "\0" in text:
        raise UserError(f"{where}, field {field}", "holds a NUL character", "Take it out")
    return text


def id_of(row: Row, field: str, name: str, where: str) -> str:
    """The row's own id, or else `name`."""
    return text_of(row, field, where) if row.get(field) not in (None, "") else name


def texts(row: Row, field: str, where: str) -> list[str]:
    """The field's list of texts; [] where it is absent or null."""
    value = row.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Give a list of texts")
    return [_clean(text, field, where) for text in value or []]
