"""Data sets as lists of `Problem`: from the hub, from JSON lines, or generated (`arithmetic`).

Each loader takes a split and returns its problems. Nothing here shuffles: the order of training is keyed in `rollout`.
"""

from __future__ import annotations

import codecs
import json
import zlib
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from dash_exp.errors import UserError
from dash_exp.grading import boxed
from dash_exp.types import Problem

Row = Mapping[str, Any]
Located = tuple[Row, str, str]  # a row, where it stands ("FILE, line 3") and its id ("train/3")
Parse = Callable[[Row, str, str], Problem]  # what is in a `Located` -> Problem


def gsm8k(path: str, split: str) -> list[Problem]:
    """GSM8K: fields `question` and `answer` (reasoning, then `#### number`). `path`: a folder, or the hub name."""

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = _text(row, "answer", where)
        if "####" not in solution:
            raise UserError(f"{where}, field answer", "has no '#### number' at its end", "GSM8K rows end with it")
        reasoning, answer = solution.rsplit("####", 1)
        if not answer.strip():
            raise UserError(f"{where}, field answer", "has nothing behind its last ####", "GSM8K rows end with '#### number'")
        prompt = _text(row, "question", where)
        return Problem(name, prompt, answer.strip().replace(",", ""), f"{reasoning.strip()}\n#### {answer.strip()}")

    return _load(path, split, parse, subset="main")


def math(path: str, split: str, hub_splits: str | None = None, hub_path: str | None = None) -> list[Problem]:
    """MATH: fields `problem`, `solution`, and `answer` or else the last \\boxed{} of the solution.

    `path`: a folder, or a hub name. On the hub the splits may be called otherwise (`hub_splits`, such as "train+test") and
    the test set may stand under another name (`hub_path`); a folder holds train.jsonl and test.jsonl.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        solution = _text(row, "solution", where)
        answer = _text(row, "answer", where) if "answer" in row else last_boxed(solution)
        if answer is None or not answer.strip():
            raise UserError(f"{where}, field solution", "has no \\boxed{answer}", "Give it, or a field 'answer'")
        return Problem(_id(row, "unique_id", name, where), _text(row, "problem", where), answer, solution)

    if _is_local(path):
        return _load(path, split, parse)
    return _load(hub_path or path, hub_splits or split, parse)


def jsonl(path: str, split: str, prompt: str, answer: str, solution: str | None = None) -> list[Problem]:
    """Any JSON lines: a folder with train.jsonl and test.jsonl. `prompt`, `answer`, `solution` name the fields."""

    def parse(row: Row, where: str, name: str) -> Problem:
        trace = _text(row, solution, where) if solution else None
        return Problem(_id(row, "id", name, where), _text(row, prompt, where), _text(row, answer, where), trace)

    return _load(path, split, parse)


def mbpp(path: str, split: str, subset: str = "full") -> list[Problem]:
    """MBPP: small Python tasks with three tests each, in the official splits by task_id: 1-10 prompt, 11-510 test, 511-600
    validation, 601-974 train.

    `path`: a hub name (with `subset` "full" or "sanitized"), or a folder with the published mbpp.jsonl or with train.jsonl and
    test.jsonl. Fields: `text` (`prompt` in the sanitized subset), `code`, `task_id`, `test_list`, and where there are any
    `test_setup_code`, `test_imports` and `challenge_test_list`. The prompt shows the text and the tests, from which a reader
    learns the function's name; tests of more than 500 characters (of two tasks) and challenge tests are graded but not shown.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        tests = _texts(row, "test_list", where)
        if not tests:
            raise UserError(
                f"{where}, field test_list", "is missing or empty", "Give at least one test, such as 'assert f(1) == 2'"
            )
        set_up = [_text(row, "test_setup_code", where)] if str(row.get("test_setup_code") or "").strip() else []
        set_up += _texts(row, "test_imports", where)
        graded = [*set_up, *tests, *_texts(row, "challenge_test_list", where)]
        return _program(row, where, f"mbpp/{_task_id(row, where)}", tests, graded)

    if (whole := _whole(path, "mbpp.jsonl")) is not None:
        return _problems(_of_split(_rows(whole, "mbpp"), split), parse, path, split)
    return _load(path, split, parse, subset=subset)


def mbpp_plus(path: str, split: str) -> list[Problem]:
    """MBPP+: 378 tasks of MBPP with many more tests each, graded by the script in the field `test`; its tests are not shown.

    Published is one split, "test", with MBPP's task_ids. Here "test" are those of MBPP's test split (11-510) and "train" all
    others, so that neither set's training problems meet the other's tests. (The paper trains on MBPP+ and tests on it; this
    division is ours.) `path`: a hub name, or a folder with all tasks in mbpp_plus.jsonl, or with train.jsonl and
    test.jsonl, taken as they are. Fields: `prompt`, `code`, `task_id`, `test_list`, `test` and `test_imports`.
    """

    def parse(row: Row, where: str, name: str) -> Problem:
        graded = [*_texts(row, "test_imports", where), _text(row, "test", where)]
        return _program(row, where, f"mbpp_plus/{_task_id(row, where)}", _texts(row, "test_list", where), graded)

    def of_part(rows: Iterator[Located]) -> Iterator[Located]:
        return (r for r in rows if (mbpp_split(_task_id(r[0], r[1])) == "test") == (split == "test"))

    if (whole := _whole(path, "mbpp_plus.jsonl")) is not None:
        return _problems(of_part(_rows(whole, "mbpp_plus")), parse, path, split)
    if _is_local(path):
        return _load(path, split, parse)
    return _problems(of_part(_hub(path, "test", None)), parse, path, split)


def mbpp_split(task_id: int) -> str:
    """The official split of a task of MBPP."""
    return "prompt" if task_id <= 10 else "test" if task_id <= 510 else "validation" if task_id <= 600 else "train"


def indices_of_step(step: int, per_step: int, n: int, seed: int) -> list[int]:
    """Which of n problems outer step `step` (from 0) takes: consecutive slices of a shuffled pass over all, then of another.

    What is left at the end of a pass is skipped, so no problem comes twice in a step.
    """
    data_pass, i = divmod(step, n // per_step)
    order = np.random.default_rng([seed, data_pass]).permutation(n)
    return [int(j) for j in order[i * per_step : (i + 1) * per_step]]


def without(problems: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems whose prompt is not in the test sets: no run is graded on what it was trained on."""
    seen = {p.prompt.strip() for p in test}
    return [p for p in problems if p.prompt.strip() not in seen]


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces matched. `"so \\boxed{\\frac{1}{2}}." -> "\\frac{1}{2}"`."""
    found = boxed(text)
    return found[-1][2] if found else None


# --- files and the hub -------------------------------------------------------------------------------------------------


def _load(path: str, split: str, parse: Parse, subset: str | None = None) -> list[Problem]:
    return _problems(_local(path, split) if _is_local(path) else _hub(path, split, subset), parse, path, split)


def _problems(rows: Iterator[Located], parse: Parse, path: str, split: str) -> list[Problem]:
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


def _is_local(path: str) -> bool:
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1


def _local(path: str, split: str) -> Iterator[Located]:
    folder = Path(path).expanduser()
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        raise UserError(f"data.path={path}", f"there is no file {file}", "Give a folder that holds train.jsonl and test.jsonl")
    yield from _rows(file, split)


def _rows(file: Path, split: str) -> Iterator[Located]:
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


def _hub(path: str, split: str, subset: str | None) -> Iterator[Located]:
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


def _text(row: Row, field: str, where: str) -> str:
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


def _id(row: Row, field: str, name: str, where: str) -> str:
    """The row's own id, or else `name`."""
    return _text(row, field, where) if row.get(field) not in (None, "") else name


def _texts(row: Row, field: str, where: str) -> list[str]:
    """The field's list of texts; [] where it is absent or null."""
    value = row.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise UserError(f"{where}, field {field}", f"is {value!r:.200}", "Give a list of texts")
    return [_clean(text, field, where) for text in value or []]


# --- programs ----------------------------------------------------------------------------------------------------------

SHOWN_CHARACTERS = 500  # the longest test that a prompt shows


def _program(row: Row, where: str, name: str, shown: Sequence[str], graded: Sequence[str]) -> Problem:
    text = _unix(_text(row, "text" if "text" in row else "prompt", where)).strip()
    code = _unix(_text(row, "code", where))
    tests = [_unix(test).strip() for test in shown if len(test) <= SHOWN_CHARACTERS]
    prompt = "\n".join([text, "The program must pass these tests:", *tests, ""]) if tests else f"{text}\n"
    return Problem(name, prompt, code, code, tuple(_unix(piece) for piece in graded if piece.strip()))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _task_id(row: Row, where: str) -> int:
    value = _text(row, "task_id", where).rpartition("/")[2]  # some copies write "Mbpp/2"
    if not value.isdecimal():
        raise UserError(f"{where}, field task_id", f"is {row['task_id']!r}", "Give MBPP's number of the task")
    return int(value)


def _whole(path: str, name: str) -> Path | None:
    """The file of a folder that holds all splits, where there is one."""
    file = Path(path).expanduser() / name
    return file if _is_local(path) and file.is_file() else None


def _of_split(rows: Iterator[Located], split: str) -> Iterator[Located]:
    return (r for r in rows if mbpp_split(_task_id(r[0], r[1])) == split)


# --- arithmetic: the embedded default ----------------------------------------------------------------------------------

MODULUS = 100
OPERATORS = {"+": "plus", "-": "minus", "*": "times"}


def arithmetic(
    split: str,
    form: str | Mapping[str, float],
    size: int,
    operands: tuple[int, int] = (3, 6),
    direct: Sequence[float] = (),
    careless: float = 0.0,
    error_rate: float = 0.25,
    skip: float = 0.0,
) -> list[Problem]:
    """Chains of one-digit numbers, worked from left to right modulo 100: what MATH and GSM8K are, in the small.

    `form`: "symbols" (`3+4*2=`, the training distribution), "words" (`3 plus 4 times 2 is`, out of distribution), or shares of
    both. `operands`: fewest and most numbers in a chain. Solutions are spelled out (`3+4=7 7*2=14 A:14`); `direct` gives for
    each length of chain, shortest first, the share that is bare (`A:14`). A share `careless` of those spelled out has wrong
    results, each step with probability `error_rate`. A base model learns from all of it, as people answer short problems from
    the head and make mistakes. A share `skip` of the steps is not written down but done in the head together with the next
    (`3+4*2=14 A:14`), as solutions written by people leave out what seems plain; see `merge_steps`.

    The problems depend on the arguments alone, never on the seed of a run.
    """
    forms = {form: 1.0} if isinstance(form, str) else dict(form) if isinstance(form, Mapping) else {}
    if set(forms) - {"symbols", "words"} or not all(map(_is_share, forms.values())) or not any(forms.values()):
        raise UserError("data.form", f"is {form!r}", "Use symbols, words, or shares of both")
    if isinstance(operands, str) or not isinstance(operands, Sequence) or len(operands) != 2:
        raise UserError(f"data.operands={operands}", "is no pair", "Give the fewest and the most numbers, as in [3,6]")
    fewest, most = operands
    if not (_is_whole(fewest) and _is_whole(most) and 2 <= fewest <= most <= 100):
        raise UserError(
            f"data.operands={operands}", "are no lengths", "Give two whole numbers of at least 2, the smaller first"
        )
    if not _is_whole(size) or size < 1:
        raise UserError(f"data.size={size}", "is not a whole number of at least 1", "Give the number of problems")
    shares = {"careless": careless, "error_rate": error_rate, "skip": skip}
    for key, share in {**shares, **{f"direct[{i}]": share for i, share in enumerate(direct)}}.items():
        if not _is_share(share):
            raise UserError(f"data.{key}={share}", "is not a share", "Use a number from 0 to 1")
    bare = list(direct) or [0.0] * (most - fewest + 1)
    if len(bare) != most - fewest + 1:
        raise UserError("data.direct", f"has {len(bare)} shares", f"Give one for each length from {fewest} to {most}")
    chains = len(forms) * sum(10**n * len(OPERATORS) ** (n - 1) for n in range(fewest, most + 1))
    if size > chains // 2:
        raise UserError(f"data.size={size}", f"is too much: there are {chains} such problems", f"Use at most {chains // 2}")
    name = f"{split} {forms} {size} {fewest} {most} {bare} {careless} {error_rate}"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    skip_rng = np.random.default_rng(zlib.crc32(f"{name} skip".encode()))  # of its own: skipping changes no problem
    kinds, up_to = list(forms), _cumulative(list(forms.values()))
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        numbers = rng.integers(0, 10, size=rng.integers(fewest, most + 1)).tolist()
        signs = [list(OPERATORS)[i] for i in rng.integers(0, 3, size=len(numbers) - 1)]
        prompt = _write(numbers, signs, kinds[bisect(up_to, rng.random())])
        answer = _work_out(numbers, signs, 0.0, rng).rpartition("A:")[2]
        spelled_out, careful = rng.random() >= bare[len(numbers) - fewest], rng.random() >= careless
        solution = _work_out(numbers, signs, 0.0 if careful else error_rate, rng) if spelled_out else f"A:{answer}"
        solution = merge_steps(solution, (skip_rng.random(len(signs)) < skip).tolist())
        problems.setdefault(prompt, Problem(f"arithmetic/{split}/{prompt}", prompt, answer, solution))
    return list(problems.values())


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def merge_steps(solution: str, skipped: Sequence[bool]) -> str:
    """The trace with step i written as one with the next where `skipped[i]`; the last step stays. A bare answer has no steps.

    `("3+4=7 7*2=14 14-5=9 A:9", [False, True]) -> "3+4=7 7*2-5=9 A:9"`
    """
    *steps, answer = solution.split(" ")
    written: list[str] = []
    for i, step in enumerate(steps):
        if i > 0 and skipped[i - 1]:
            left, _, result = written.pop().rpartition("=")
            step = left + step.removeprefix(result)
        written.append(step)
    return " ".join([*written, answer])


def _cumulative(shares: list[float]) -> list[float]:
    """The sum of each share and those before it, of all of them: `bisect` then draws as `rng.choice` does, but faster."""
    sums = np.cumsum(np.array(shares, dtype=float) / sum(shares))
    return (sums / sums[-1]).tolist()


def _write(numbers: list[int], signs: list[str], form: str) -> str:
    if form == "symbols":
        return "".join(f"{n}{s}" for n, s in zip(numbers, [*signs, "="], strict=True))
    return " ".join(f"{n} {s}" for n, s in zip(numbers, [*(OPERATORS[s] for s in signs), "is"], strict=True))


def _work_out(numbers: list[int], signs: list[str], error_rate: float, rng: np.random.Generator) -> str:
    """The trace of one chain. An error in a step is carried on, as a person would."""
    steps, value = [], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        right = {"+": value + number, "-": value - number, "*": value * number}[sign] % MODULUS
        result = int(rng.integers(0, MODULUS)) if rng.random() < error_rate else right
        steps.append(f"{value}{sign}{number}={result}")
        value = result
    return f"{' '.join(steps)} A:{value}"
