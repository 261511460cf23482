"""Rows as they are in files (JSON lines, a JSON list, parquet, CSV) and in data sets of the hub. `rows` reads their fields.

Every function raises UserError that names the file and the line or row for what it cannot read.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError

Row = Mapping[str, Any]
Located = tuple[Row, str, str]  # a row, its place for messages ("FILE, line 3") and its id ("train/3")

ANOTHER_SPLIT = (
    "Name a split that is there, data.split=NAME, or a part of one, as in \"data.split='train[:100]'\"; "
    "for a test set also another place, data.tests.NAME.path=FILE"
)

LONGEST_FIELD = 2**31 - 1  # characters of a value in a CSV file; by default Python refuses more than 131,072


def is_local(path: str) -> bool:
    """Whether `path` is meant as a folder or file. Anything that is not of the form OWNER/NAME is, and so is what exists."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).suffix in READERS


def rows_of(path: str, split: str, subset: str | None = None) -> Iterator[Located]:
    """The rows of a split: of a file, of a folder, or of a data set of the hub.

    A folder has a file `SPLIT.jsonl`, `.json`, `.parquet` or `.csv`, or is a copy of a data set of the hub, in which `subset`
    is a configuration. `split` may be a part, as in "train[500:]" or "train[:500]", and a sum, as in "train+test".
    """
    place = Path(path).expanduser()
    if not is_local(path) or (place.is_dir() and _is_copy(place, split)):
        yield from hub_rows(str(place), split, subset)
        return
    for summand in split.split("+"):
        name, first, end = _part(summand)
        yield from islice(read_rows(place if place.is_file() else _file(path, name), name), first, end)


def _part(split: str) -> tuple[str, int | None, int | None]:
    """`train[500:]` as "train", 500, None."""
    found = re.fullmatch(r"([^\[\]]*)(?:\[(\d*):(\d*)\])?", split)
    if not found:
        right = "Write numbers of rows from the start, as in train[500:] or train[:500]"
        raise UserError(f"split {split}", "cannot be read as a part of a file", right)
    first, end = (int(number) if number else None for number in found.groups()[1:])
    return found[1], first, end


def _is_copy(folder: Path, split: str) -> bool:
    """Whether the folder is a copy of a data set of the hub: its files are in folders, or have longer names."""
    names = [summand.partition("[")[0] for summand in split.split("+")]
    return not any(_files(folder, name) for name in names) and any(folder.rglob("*.parquet"))


def _files(folder: Path, split: str) -> list[Path]:
    return [file for ending in READERS if (file := folder / f"{split}{ending}").is_file()]


def _file(path: str, split: str) -> Path:
    """The file of a split in a folder."""
    folder = Path(path).expanduser()
    found = _files(folder, split)
    if len(found) > 1:
        wrong = f"there are both {found[0].name} and {found[1].name}"
        raise UserError(f"data.path={path}", wrong, "Remove one of them, or name a file: data.path=FILE")
    if not found:
        others = ", ".join(ending for ending in READERS if ending != ".jsonl")
        wrong = f"there is no file {folder / split}.jsonl (nor {others})"
        right = f"Give a folder that has train.jsonl and test.jsonl, or a hub name. {ANOTHER_SPLIT}"
        raise UserError(f"data.path={path}", wrong, right)
    return found[0]


def hub_rows(path: str, split: str, subset: str | None) -> Iterator[Located]:
    """The rows of one split of a data set of the hub (`datasets.load_dataset(path, name=subset, split=split)`)."""
    import datasets

    try:
        rows = datasets.load_dataset(path, name=subset, split=split)
    except Exception as error:  # whatever the hub client raises, the user can do the same two things
        if found := re.match(r'Unknown split "(.*?)"\. Should be one of \[(.*)\]', str(error)):
            there = f"what is there is {found[2]}"
            if Path(path).is_dir():
                wrong = f"there is no file {Path(path) / found[1]}.parquet, nor another one of this split; {there}"
                raise UserError(f"data.path={path}", wrong, ANOTHER_SPLIT) from error
            raise UserError(f"data set {path}", f"has no split {found[1]!r}; {there}", ANOTHER_SPLIT) from error
        raise UserError(
            f"data set {path}",
            f"could not be loaded {'as a copy of one of' if Path(path).is_dir() else 'from'} the hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "Check the name and the network (with data=hub also data.subset and data.split), or give a "
            "folder with train.jsonl and test.jsonl: data.path=DIR. With data=math also give data.gsm8k_path=DIR (or "
            "data.tests.out_dist=null); for another test set give data.tests.NAME.path=DIR",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}, {split} row {number}", f"{split}/{number}"


# --- files -------------------------------------------------------------------------------------------------------------


def read_rows(file: Path, split: str) -> Iterator[Located]:
    """The rows of a file, read as its ending says; their ids are `split`/NUMBER."""
    if file.suffix not in READERS:
        raise UserError(str(file), "has an ending that is not known", f"Give a file that ends in {', '.join(READERS)}")
    try:
        for row, number, where in READERS[file.suffix](file):
            yield row, f"{file}, {where}", f"{split}/{number}"
    except OSError as error:
        raise UserError(
            str(file), f"cannot be read ({error.strerror or error})", "Change its permissions, or give another file"
        ) from error


Numbered = Iterator[tuple[Row, int, str]]  # a row, its number for the id, its place in the file for messages


def _json_lines(file: Path) -> Numbered:
    """One object a line; empty lines are skipped, but count."""
    for number, line in _lines(file):
        if line.strip():
            yield _object(_json(line, file, number), f"{file}, line {number}"), number, f"line {number}"


def _json_list(file: Path) -> Numbered:
    """One list of objects."""
    text = "".join(line for _, line in _lines(file))
    rows = _json(text, file)
    if not isinstance(rows, list):
        raise UserError(str(file), "is not a list", "Write one list of objects, or one object per line in a file .jsonl")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{file}, object {number}"), number, f"object {number}"


def _parquet(file: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield row, number, f"row {number}"
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(str(file), f"cannot be read as parquet ({str(error)[:200]})", "Write it again") from error


def _csv(file: Path) -> Numbered:
    """Values separated by commas, with names in the first line. Every value is text as it is written."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    names: list[str] | None = None
    start, number = 1, 0
    try:
        for values in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = _names(values, str(file))
                continue
            number += 1
            if len(values) != len(names):
                wrong = f"has {len(values)} values, and the first line {len(names)} names"
                right = 'Put a text with a comma, a quotation mark or a line break into quotation marks: "a, ""b"""'
                raise UserError(f"{file}, {where}", wrong, right)
            yield dict(zip(names, values, strict=True)), number, where
    except csv.Error as error:
        right = 'Put a text with a comma or a line break into quotation marks, and double those inside it: "a, ""b"""'
        raise UserError(f"{file}, line {start}", f"is not valid CSV ({error})", right) from error


def _names(names: list[str], file: str) -> list[str]:
    """The names of the columns."""
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise UserError(f"{file}, line 1", f"has the name {again!r} twice", "Give each column a name of its own")
    for mark, said in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise UserError(f"{file}, line 1", f"has {said} between its names", "Save it with commas, or as JSON lines")
    return names


READERS = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet, ".csv": _csv}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8 with their numbers."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if number == 1:
                _refuse_kinds(line, where)
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = f"is not UTF-8 ({error.reason}, byte {error.start + 1})"
                raise UserError(where, wrong, "Save the file as UTF-8") from error


def _refuse_kinds(start: bytes, where: str) -> None:
    """Refuse files that are not text in UTF-8, which their first bytes show."""
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise UserError(where, "is compressed", "Unpack the file")
    if start.startswith(b"PAR1"):
        raise UserError(where, "is parquet", "Give the file the ending .parquet")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (b"\0" in start[:4] and any(start[:4])):
        raise UserError(where, "is not UTF-8 but UTF-16 or UTF-32", "Save the file as UTF-8")


def _json(text: str, file: Path, line: int | None = None) -> Any:
    """The value of a JSON text: of this line, or of the whole file."""
    where = f"{file}, line {line}" if line else str(file)
    try:
        return json.loads(text.rstrip())  # an error at the end of a line is then in its last column
    except json.JSONDecodeError as error:
        if line is None and error.msg == "Extra data":
            raise UserError(where, "has more than one value", "Name it .jsonl if it has one object per line") from error
        wrong = f"is not valid JSON ({error.msg}, column {error.colno})"
        raise UserError(f"{file}, line {line or error.lineno}", wrong, "Correct the line") from error
    except RecursionError as error:
        raise UserError(where, "is nested too deeply", "Write flat objects") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise UserError(where, f"has a number that cannot be read ({error})", "Write it as text") from error


def _object(row: object, where: str) -> Row:
    """The same value, which must be a JSON object."""
    if not isinstance(row, dict):
        list_ = "; a list of all objects is a file .json" if isinstance(row, list) else ""
        raise UserError(where, "is not a JSON object", f'Write one object per line: {{"field": value, ...}}{list_}')
    return row
