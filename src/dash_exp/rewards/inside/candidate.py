"""The candidate: runs the program of a completion, then does with its objects what the judge asks for."""

from __future__ import annotations

import operator
import sys

from dash_exp.rewards.inside import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# What a request may do with an object. Comparison and arithmetic are not among them: they would show the expected value to the
# program and let the program decide the result.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
}


def candidate(requests: int, replies: int, source: bytes) -> NoReturn:
    """Run the program, then answer requests until the judge is gone.

    A reply is whether the operation returned, what it returned (or the names of its exception's types, and its message), and
    which of the containers in the request were changed, with what is in them now.
    """
    module = type(sys)("solution")
    sys.modules["solution"] = module  # dataclasses and others look up their module
    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)  # not with the __future__ of this file
    objects: list[Any] = [module]
    numbers: dict[int, int] = {id(module): 0}

    def number(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    while True:
        containers: list[Any] = []
        operation, args, kwargs = wire.decode(wire.receive(requests, sys.maxsize), objects.__getitem__, containers)
        before = [wire.content_of(container) for container in containers]
        answer: Any
        try:
            right, answer = True, OPERATIONS[operation](*args, **kwargs)
        except Exception as error:
            names = [c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"]
            right, answer = False, (names, str(error))
        after = [wire.content_of(container) for container in containers]
        changed = [(i, now) for i, (then, now) in enumerate(zip(before, after, strict=True)) if not _same(then, now)]
        wire.send(replies, wire.encode((right, answer, changed), number, containers))


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return len(before) == len(after) and all(map(operator.is_, before, after))
