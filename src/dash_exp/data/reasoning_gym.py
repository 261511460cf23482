"""Problems of reasoning-gym: some hundred tasks that are generated, from sums to puzzles (arXiv 2505.24760)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.puzzles import dataset

log = logging.getLogger(__name__)

SPARE = 1.25  # of the problems that a run takes: some are in a test, and are taken out
REPEATS = 100  # problems in a row that are known before a task counts as exhausted, at least
SUMS = ("basic_arithmetic", "chain_sum", "decimal_chain_sum", "products")  # tasks whose answer is the value of an expression


def load(
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    tasks: Mapping[str, Any] | None = None,
    size: int | None = None,
    takes: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """`size` different problems of one task with its options, or of several tasks.

    - `tasks`: the weight of each task by its name; or its weight and options, as in {"gcd": {"weight": 2, "max_value": 30}}.
    - `takes`: with `size` None, the problems that the run takes: there are then enough of them for no problem to come twice.
    - `seed`: two seeds share no problem but by chance. The problems depend only on the arguments, never on the seed of a run.

    Tasks whose answer is the value of an expression have written solutions, as in `4 - 1 + 7 = 10`: the steps between are left
    out. Where a task has fewer different problems, one line of the log says so. `extra` of a problem is what its scorer needs:
    `task`, `options` and `metadata`. Raises UserError for tasks and options that cannot be used.
    """
    if size is None:
        size = math.ceil(SPARE * (takes or 0))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"size={size}", "is not a whole number of at least 1", "Write the number of problems, or null")
    shares = _shares(task, options, tasks)
    counts = _counts(size, [weight for weight, _ in shares.values()])
    found = [
        _problems(name, choice, count, seed) for (name, (_, choice)), count in zip(shares.items(), counts, strict=True) if count
    ]
    # in turn, so that the first N problems have the same shares
    ranked = [((i + 0.5) / len(problems), problem) for problems in found for i, problem in enumerate(problems)]
    return [problem for _, problem in sorted(ranked, key=lambda pair: pair[0])]


def _shares(
    task: str | None, options: Mapping[str, Any] | None, tasks: Mapping[str, Any] | None
) -> dict[str, tuple[float, dict[str, Any]]]:
    """The weight and the options of each task."""
    if (task is None) == (not tasks):
        wrong = "neither is given" if task is None else "both are given"
        right = "Give one of them, as in data.task=chain_sum; of a further test set data.tests.NAME.task=chain_sum"
        raise UserError("data.task and data.tasks", wrong, right)
    if not isinstance(options or {}, Mapping):
        raise UserError(f"data.options={options}", "has no names", "Write data.options.NAME=VALUE")
    if not tasks:
        return {str(task): (1.0, _plain(options or {}))}
    if options:
        raise UserError("data.options", "belong to data.task", "Write them into data.tasks: {gcd: {weight: 1, max_value: 30}}")
    if not isinstance(tasks, Mapping):
        raise UserError(f"data.tasks={tasks}", "has no weights", "Write them behind the names: {chain_sum: 2, gcd: 1}")
    shares = {}
    for name, value in tasks.items():
        choice = _plain(value) if isinstance(value, Mapping) else {"weight": value}
        weight = choice.pop("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"data.tasks.{name}", f"its weight is {weight}", "Write a number above 0, or {weight: 1, ...}")
        shares[str(name)] = (float(weight), choice)
    return shares


def _plain(value: Any) -> Any:
    """The same as dicts and lists of Python, which settings are not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _counts(size: int, weights: Sequence[float]) -> list[int]:
    """`size` divided by the weights; what is left over goes to the largest remainders. `(10, [2, 1]) -> [7, 3]`."""
    exact = [size * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def _problems(task: str, options: dict[str, Any], count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of different texts."""
    # Entry i of a task depends on its seed + i: neighbouring seeds would share nearly all problems.
    start = int.from_bytes(hashlib.sha256(f"{task} {seed}".encode()).digest()[:4]) // 2
    size = 2 * count
    made = dataset(task, options, start, size)
    found: dict[str, Problem] = {}
    index = repeats = 0
    while len(found) < count and repeats < max(REPEATS, len(found)):
        if index == size:  # where some tasks end
            size *= 2
            try:
                made = dataset(task, options, start, size)
            except UserError:  # of a task that has no more
                break
        entry = _entry(made, task, start, index)
        text = entry["question"].strip()
        repeats = repeats + 1 if text in found else 0
        extra = {"task": task, "options": options, "metadata": entry["metadata"]}
        answer = "" if entry["answer"] is None else str(entry["answer"])  # some tasks give none: many answers are right
        found.setdefault(
            text, Problem(f"{task}/{seed}/{index}", entry["question"], answer, _solution(extra, answer), extra=extra)
        )
        index += 1
    if len(found) < count:
        log.warning("task %s: %d different problems were found with these options, not %d", task, len(found), count)
    return list(found.values())


def _solution(extra: Mapping[str, Any], answer: str) -> str | None:
    """A written solution, as a person writes it: without the steps between. Most tasks have none."""
    return f"{extra['metadata']['expression']} = {answer}" if extra["task"] in SUMS else None


def _entry(made: Any, task: str, start: int, index: int) -> dict[str, Any]:
    with _own_randomness(start + index), contextlib.redirect_stdout(io.StringIO()):  # some print while they work
        try:
            return made[index]
        except Exception as error:  # whatever a task meets with options that it took
            said = f"{type(error).__name__}: {error}"
            raise UserError(f"options of task {task}", f"make no problem ({said})", "Correct them") from error


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Python's and NumPy's common generators with this seed inside, as before outside: some tasks draw from them."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
