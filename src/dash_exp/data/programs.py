"""Small programming tasks with tests, generated: chains of steps such as `x plus 7`. For models that MBPP is too hard for."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.program_steps import ARGUMENTS, FAILS, GIVEN, KINDS, STEPS, Applied, Chain, Step, outcome

NAMES = ("f", "g", "h", "compute", "solve", "run")  # of functions
HELD = "abcde"  # what holds the values between steps: at most as many steps
ONE_STEP = (
    "Write a Python function {call} that returns {what}.",
    "Define a function {call} in Python. It returns {what}.",
    "Write a Python function {call}. Given {given}, it returns {what}.",
)
SEVERAL_STEPS = (
    "Write a Python function {call}. {lets} The function returns {last}.",
    "Write a Python function {call} that computes {whats}, and returns the last result.",
    "Write a Python function {call}. Given {given}, it computes {whats}, and returns the last result.",
)
FEWEST_TESTS, MOST_TESTS = 3, 5
LONGEST = 60  # characters of a value in a test
IN_TEST = 5  # one in so many programs is in the test split
MISSES = 2000  # draws without a new problem before there are taken to be no more


def generate(
    split: str,
    size: int,
    kinds: Sequence[str] = KINDS[:4],
    steps: Mapping[str, int] | None = None,
    seed: int = 0,
) -> list[Problem]:
    """`size` small programming tasks of different texts, such as "Write a Python function f(x) that returns x plus 7."

    - `split`: "train" or "test". No program of one split is in the other, whatever the words and the seed.
    - `kinds`: what the steps are about, of `KINDS`: numbers, pairs (of numbers), lists, strings, conditions.
    - `steps`: {"min": 1, "max": 2}, the fewest and the most steps of a program, each of which takes what the one before gives.

    A problem has 3 to 5 tests, edge cases among them, whose expected values the written solution gave. They are chosen so that
    a constant fails, and each of some programs in which one step is left out, is another one, has another constant or a common
    mistake, as far as a dozen inputs show it. The problems depend only on the arguments, never on the seed of a run. Raises
    UserError for arguments out of their range, and where there are fewer problems.
    """
    if split not in ("train", "test"):
        raise UserError(f"data.split={split}", "is no split", "Write train or test")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"data.size={size}", "is not a whole number of at least 1", "Write the number of problems")
    chosen = _kinds(kinds)
    fewest, most = _range(steps)
    rng = random.Random(f"{split} {chosen} {fewest} {most} {seed}")
    problems: dict[str, Problem] = {}
    missed = 0
    while len(problems) < size:
        problem = _problem(split, chosen, rng.randint(fewest, most), rng)
        missed = missed + 1 if problem is None or problem.prompt in problems else 0
        if problem is not None:
            problems.setdefault(problem.prompt, problem)
        if missed == MISSES:
            found = f"is too much: {len(problems)} such problems were found with kinds={chosen} and {fewest} to {most} steps"
            raise UserError(f"data.size={size}", found, "Lower it, or write more kinds or other steps")
    return list(problems.values())


def _kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds, in the order of `KINDS`."""
    wrong = isinstance(kinds, str) or not isinstance(kinds, Sequence) or not kinds or any(kind not in KINDS for kind in kinds)
    if wrong:
        raise UserError(f"data.kinds={kinds}", "is not a list of kinds", f"Write some of [{','.join(KINDS)}]")
    return [kind for kind in KINDS if kind in kinds]


def _range(steps: Mapping[str, int] | None) -> tuple[int, int]:
    given: dict[str, Any] = {"min": 1, "max": 2} if steps is None else dict(steps) if isinstance(steps, Mapping) else {}
    fewest, most = given.get("min", 0), given.get("max", 0)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (fewest, most))
    if set(given) != {"min", "max"} or not whole or not 1 <= fewest <= most <= len(HELD):
        right = f"Write {{min: 1, max: 2}}, whole numbers from 1 to {len(HELD)}"
        raise UserError(f"data.steps={steps}", "is not a range", right)
    return fewest, most


def _problem(split: str, kinds: Sequence[str], steps: int, rng: random.Random) -> Problem | None:
    """One problem; None where the steps do not fit together, or the program is of the other split or not worth a test."""
    chain = _chain([step for step in STEPS if step.kind in kinds], steps, rng)
    if chain is None or (zlib.crc32(_written(chain, "f").encode()) % IN_TEST == 0) != (split == "test"):
        return None
    inputs = _tests(chain, rng)
    if inputs is None:
        return None
    name = rng.choice(NAMES)
    prompt, program = _asked(chain, name, rng), _written(chain, name)
    tests = tuple(f"assert {name}({', '.join(map(repr, given))}) == {outcome(chain, given)!r}" for given in inputs)
    number = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return Problem(f"programs/{split}/{number}", prompt, program, program, tests)


def _chain(allowed: Sequence[Step], length: int, rng: random.Random) -> Chain | None:
    """So many steps, each of which takes what the one before gives; None where this draw came to an end too early."""
    taken = rng.choice([kind for kind in ARGUMENTS if any(step.takes == kind for step in allowed)])
    chain: list[Applied] = []
    for _ in range(length):
        fitting = [step for step in allowed if step.takes == taken]
        if not fitting:
            return None
        step = rng.choice(fitting)
        chain.append(Applied(step, rng.choice(step.values)))
        taken = step.gives
    return tuple(chain)


# --- texts -------------------------------------------------------------------------------------------------------------


def _asked(chain: Chain, name: str, rng: random.Random) -> str:
    """The task in English, in one of several wordings."""
    first, takes = ARGUMENTS[chain[0].step.takes], chain[0].step.takes
    wordings = [rng.randrange(2) for _ in chain]
    call = f"{name}({', '.join(first)})"
    form = rng.choice(ONE_STEP if len(chain) == 1 else SEVERAL_STEPS)
    befores = [first, *((held,) for held in HELD)]
    # with the names of the written solution
    lets = [f"Let {HELD[i]} be {applied.says(wordings[i], *befores[i])}." for i, applied in enumerate(chain)]
    whats = [applied.says(wordings[i], *(("the result",) if i else first)) for i, applied in enumerate(chain)]
    return form.format(
        call=call,
        given=GIVEN[takes],
        what=whats[0],
        whats=", then ".join(whats),
        lets=" ".join(lets),
        last=HELD[len(chain) - 1],
    )


def _written(chain: Chain, name: str) -> str:
    """The program: one line for each step."""
    held = ARGUMENTS[chain[0].step.takes]
    lines = [f"def {name}({', '.join(held)}):"]
    for variable, applied in zip(HELD, chain[:-1], strict=False):
        lines.append(f"    {variable} = {applied.code(*held)}")
        held = (variable,)
    return "\n".join([*lines, f"    return {chain[-1].code(*held)}"])


# --- tests -------------------------------------------------------------------------------------------------------------


def _tests(chain: Chain, rng: random.Random) -> list[tuple[Any, ...]] | None:
    """The inputs of its tests; None where no 5 of them tell the program from a constant and from all of its rivals."""
    inputs: list[tuple[Any, ...]] = []
    values: list[Any] = []
    for given in _inputs(chain, rng):
        value = outcome(chain, given)
        if value is not FAILS and len(repr(value)) <= LONGEST and given not in inputs:
            inputs.append(given)
            values.append(value)
    constants = [[value] * len(values) for value in values]
    others = [[outcome(rival, given) for given in inputs] for rival in _rivals(chain, rng)]
    # for each that is another program: the inputs that show it
    shown = [{i for i, value in enumerate(values) if other[i] != value} for other in (*constants, *others)]
    if len(values) < FEWEST_TESTS or not all(shown[: len(constants)]):
        return None
    left = [where for where in shown if where]
    chosen = [0]  # an edge case
    left = [where for where in left if 0 not in where]
    while len(chosen) < FEWEST_TESTS or left:
        if len(chosen) == MOST_TESTS:
            return None
        best = max((i for i in range(len(values)) if i not in chosen), key=lambda i: sum(i in where for where in left))
        chosen.append(best)
        left = [where for where in left if best not in where]
    return [inputs[i] for i in chosen]


def _rivals(chain: Chain, rng: random.Random) -> Iterator[Chain]:
    """Programs that differ in one step: another constant, another step, a common mistake, or nothing in its place."""
    for i, applied in enumerate(chain):
        before, step, after = chain[:i], applied.step, chain[i + 1 :]
        yield from ((*before, Applied(step, n), *after) for n in step.values if n != applied.n)
        alike = (s for s in STEPS if (s.takes, s.gives) == (step.takes, step.gives) and s is not step)
        yield from ((*before, Applied(s, rng.choice(s.values)), *after) for s in alike)
        if step.mistake:
            yield (*before, Applied(replace(step, code=step.mistake), applied.n), *after)
        if step.takes == step.gives:
            yield (*before, *after)


def _inputs(chain: Chain, rng: random.Random) -> Iterator[tuple[Any, ...]]:
    """Arguments to test the program with: edge cases first, then some around its constants, then any."""
    takes = chain[0].step.takes
    numbers = [n for applied in chain if isinstance(n := applied.n, int)]
    letters = "".join(n for applied in chain if isinstance(n := applied.n, str))
    near = [n + d for n in numbers for d in (0, 1, -1)]
    if takes == "number":
        yield from ((x,) for x in (0, 1, -1, *near, *(rng.randint(-20, 60) for _ in range(8))))
    elif takes == "pair":
        yield from ((0, 0), (1, -1), (4, 4), (-3, 5), *((rng.randint(-20, 20), rng.randint(-20, 20)) for _ in range(8)))
    elif takes == "list":
        yield from (([],), ([0],), ([5, 2, 5],), ([-3, -1, -2],), ([*near, *near[:1]],))
        for length in (1, 2, 3, 4, 5, 6, 7, 8):
            yield ([rng.choice([*near, *range(-9, 21)]) for _ in range(length)],)
    else:
        yield from (("",), ("a",), ("Noon",), (f"x{letters}y{letters}",))
        for length in (2, 3, 4, 5, 6, 7, 8, 9):
            word = "".join(rng.choice(letters + "aeiorstAEbc") for _ in range(length))
            yield (word.capitalize() if length % 2 else word,)
