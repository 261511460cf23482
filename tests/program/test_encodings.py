"""Every text file that the package reads or writes is UTF-8, whatever the locale of the machine."""

import ast

from conftest import ROOT

SOURCES = [*sorted((ROOT / "src").rglob("*.py")), ROOT / "train.py"]


def without_encoding(tree):
    """The lines of calls that open a text file, or read the text of a process, and name no encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of_os = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "os"
        if name in ("read_text", "write_text") or "text" in named or "universal_newlines" in named:
            yield call.lineno
        elif name == "open" and not of_os:
            place = 0 if isinstance(function, ast.Attribute) else 1  # path.open(mode), open(path, mode)
            mode = named.get("mode") or next(iter(call.args[place : place + 1]), ast.Constant("r"))
            if isinstance(mode, ast.Constant) and "b" not in mode.value:
                yield call.lineno


def test_every_text_file_has_its_encoding():
    found = {path: list(without_encoding(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_what_has_no_encoding_is_found():
    source = "open(a)\nopen(a, 'wb')\na.open('w')\na.open('rb')\na.read_text()\nos.open(a)\nrun(a, text=True)"
    assert list(without_encoding(ast.parse(source))) == [1, 3, 5, 7]
