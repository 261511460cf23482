"""The judge: runs the tests, and decides whether the candidate passes.

Each name that the tests use and do not define stands for the candidate's object of that name, and using it sends a request. A
test sees plain values, made here from what the candidate sent; so all that Python or a library does with them, it does with
values of this process. Only objects of the program's own classes stay there: a `Remote` stands for one, which a test can call
and read, but which no library takes for a number, a text or an array.
"""

from __future__ import annotations

import builtins
import os
import select

from dash_exp.rewards.inside import arrays, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NoReturn

MESSAGE_BYTES = 32 * 1024 * 1024  # longest reply that the judge reads
END_MS = 500  # how long the judge waits for the candidate's end: a process that the program left behind may hold the pipe open
PASSED, FAILED, ERROR = b"passed", b"failed", b"error"
# Methods with which a text, a set or an array says that it is as expected. Of an object of the program that would be its word.
VERDICTS = {"startswith", "endswith", "all", "any"}
VERDICTS |= {name for kind in (str, set, float, bytes) for name in dir(kind) if name.startswith("is")}
# The special names that a test may read of an object; the others are protocols of libraries.
READABLE = {"__name__", "__qualname__", "__annotations__", "__dict__"}


class Lost(BaseException):
    """The candidate is gone, or its reply is not a message. No `except Exception` of a test catches this."""


class Link:
    """The judge's end of the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.things: dict[int, Remote] = {}
        self.lost = False
        self.raised: Exception | None = None  # the last exception that came from the candidate

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The candidate's answer. Its exception is raised as the nearest builtin one.

        Where the program changed a list, dict, set or bytearray among the arguments, it is changed here too.
        """
        containers: list[Any] = []
        request = wire.encode((operation, args, kwargs), self._number, containers)
        try:
            wire.send(self.requests, request)
            right, answer, changed = wire.decode(wire.receive(self.replies, MESSAGE_BYTES), self.thing, containers)
            for place, content in changed:
                wire.fill(containers[place], content)
            if right is True:
                return answer
            names, message = answer
            self.raised = _exception(names, str(message))
            if isinstance(self.raised, StopIteration) and operation != "next":
                self.raised = RuntimeError("StopIteration")  # or map, zip and all would take it for the end of their data
        except Exception as error:
            self.lost = True
            raise Lost(f"no answer: {type(error).__name__}: {error}") from None
        raise self.raised

    def is_over(self) -> bool:
        """Ask nothing more, and say whether the candidate has nothing more to say.

        A program that answers from two processes has an answer left here, whichever of the two came first.
        """
        os.close(self.requests)  # the candidate reads the end of its requests, and ends
        poll = select.poll()
        poll.register(self.replies, select.POLLIN | select.POLLHUP)
        return not poll.poll(END_MS) or not os.read(self.replies, 1)

    def thing(self, number: int) -> Remote:
        """The stand-in for one object of the candidate; the same one each time, so that `is` and `==` compare objects."""
        return self.things.setdefault(number, Remote(self, number))

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_Remote__number")
        raise wire.NotPlainError(f"the tests pass a value of type {type(value).__name__}, which cannot be sent to the program")


class Remote:
    """Stands for an object in the candidate's process. Compared by identity only (see `candidate.OPERATIONS`)."""

    __slots__ = ("__link", "__number")
    __array_ufunc__ = None  # numpy's numbers leave operators to this class, which has none

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_Remote__link", link)
        object.__setattr__(self, "_Remote__number", number)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("an object of the program is no array")  # or numpy would ask it for its length and its items

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in READABLE:
            raise AttributeError(name)
        value = self.__link.ask("getattr", self, name)
        if name in VERDICTS and isinstance(value, Remote):
            raise AttributeError(name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self.__link.ask("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__link.ask("call", self, *args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.__link.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__link.ask("setitem", self, key, value)

    def __iter__(self) -> Iterator[Any]:
        return self.__link.ask("iter", self)

    def __next__(self) -> Any:
        return self.__link.ask("next", self)

    def __len__(self) -> int:
        return self.__link.ask("len", self)

    def __bool__(self) -> bool:
        return self.__link.ask("bool", self)

    def __int__(self) -> int:
        return self.__link.ask("int", self)

    def __float__(self) -> float:
        return self.__link.ask("float", self)

    def __str__(self) -> str:
        return self.__link.ask("str", self)

    def __repr__(self) -> str:
        return self.__link.ask("repr", self)


def _exception(names: Sequence[str], message: str) -> Exception:
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:  # UnicodeDecodeError and some others take more arguments
                continue
    return Exception(message)


def judge(requests: int, replies: int, order: bytes) -> tuple[bytes, str]:
    """Run the tests in order in one namespace. Returns the verdict, and the reason for people to read."""
    tests: Mapping[str, Any] = wire.decode(order, lambda _: None)
    link = Link(requests, replies)
    namespace: dict[str, Any] = {"__name__": "tests"}
    wire.CONSTRUCTORS["numpy.ndarray"] = arrays.received
    text = "\n".join(tests["pieces"])
    try:
        for name in tests["modules"]:
            namespace[name] = __import__(name)
        for name in tests["names"]:
            try:
                namespace[name] = link.ask("getattr", link.thing(0), name)
            except AttributeError:
                if hasattr(builtins, name):  # the tests would use that one instead
                    return FAILED, f"the program has no {name}"
                # else the tests raise a NameError
        if "numpy" in text:
            arrays.compare_shapes()
        if "numpy" in text and "testing" in text:
            arrays.compare_shapes_in_testing()
        for i, piece in enumerate(tests["pieces"]):
            exec(compile(piece, f"<test {i}>", "exec", dont_inherit=True), namespace)
    except Lost as lost:
        return FAILED, str(lost)
    except wire.NotPlainError as error:
        return ERROR, str(error)
    except BaseException as error:
        if isinstance(error, ImportError) and error is not link.raised:
            return ERROR, f"they need {error.name}, which is not installed"
        return FAILED, type(error).__name__
    if link.lost:  # and a test with a bare except has caught it
        return FAILED, "no answer"
    return (PASSED, "") if link.is_over() else (FAILED, "more than one answer")
