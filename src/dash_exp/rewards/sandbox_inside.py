"""The two programs that run inside a sandbox: the candidate, and the judge who decides whether it passed.

    python -I -S sandbox_inside.py ROLE REQUESTS REPLIES MEMORY_BYTES PROCESSES CPU_S FILE_BYTES UID SITE...

The *candidate* executes the program of a completion and then serves calls. The *judge* executes the tests; each name that they
use and do not define stands for the candidate's object of that name, and using it sends a request. The two share nothing but
two pipes, on which only plain values and numbers of objects travel. The judge decodes them by hand (`decode`), never by
pickle, and compares them itself, so nothing that the program does to its own process can make a test pass.

Only the standard library, and little of it: a start takes 15 ms. `dash_exp.rewards.sandbox` is the outside.
"""

from __future__ import annotations

import builtins
import operator
import os
import resource
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing and collections.abc would take longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn

MESSAGE_BYTES = 32 * 1024 * 1024  # longest reply that the judge reads
READY = b"+"
PASSED, FAILED, ERROR = b"passed", b"failed", b"error"

# What a request may ask of an object. Comparison and arithmetic are not among them: they would show the expected value to the
# program and leave the answer to it.
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


# --- plain values as bytes ---------------------------------------------------------------------------------------------


class NotPlainError(TypeError):
    """A value that cannot be sent."""


def encode(value: Any, number: Callable[[Any], int]) -> bytes:
    """A plain value as bytes. `number` gives the number of an object that is not plain, or raises NotPlainError.

    Plain are None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, set, frozenset and dict, and these
    types themselves. Of a subclass only the content goes (a namedtuple is a tuple, a Counter a dict); numbers of numpy become
    Python's.
    """
    chunks: list[bytes] = []
    _encode(value, number, chunks.append)
    return b"".join(chunks)


def _encode(value: Any, number: Callable[[Any], int], put: Callable[[bytes], None]) -> None:
    def sized(tag: bytes, content: bytes) -> None:
        put(tag + struct.pack("<Q", len(content)) + content)

    def items(tag: bytes, content: Iterable[Any]) -> None:
        content = list(content)
        put(tag + struct.pack("<Q", len(content)))
        for item in content:
            _encode(item, number, put)

    if value is None or value is True or value is False:
        put({None: b"N", True: b"1", False: b"0"}[value])
    elif isinstance(value, int):
        sized(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True))
    elif isinstance(value, float):
        put(b"f" + struct.pack("<d", value))
    elif isinstance(value, complex):
        put(b"c" + struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        sized(b"s", str.encode(value, "utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        sized(b"b", bytes(value))
    elif isinstance(value, bytearray):
        sized(b"a", bytes(value))
    elif isinstance(value, list):
        items(b"l", list.__iter__(value))
    elif isinstance(value, tuple):
        items(b"t", tuple.__iter__(value))
    elif isinstance(value, set):
        items(b"e", set.__iter__(value))
    elif isinstance(value, frozenset):
        items(b"z", frozenset.__iter__(value))
    elif isinstance(value, dict):
        items(b"d", [side for pair in dict.items(value) for side in pair])
    elif isinstance(value, range):
        items(b"r", (value.start, value.stop, value.step))
    elif isinstance(value, type) and value in TYPES.values():
        sized(b"T", value.__name__.encode())
    elif type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        _encode(value.item(), number, put)
    else:
        put(b"o" + struct.pack("<Q", number(value)))


def decode(data: bytes, thing: Callable[[int], Any]) -> Any:
    """The value that `encode` wrote. `thing` gives the object of a number. ValueError for bytes that say nothing."""
    value, end = _decode(data, 0, thing)
    if end != len(data):
        raise ValueError("bytes are left over")
    return value


def _decode(data: bytes, at: int, thing: Callable[[int], Any]) -> tuple[Any, int]:
    tag, at = data[at : at + 1], at + 1
    if tag in CONSTANTS:
        return CONSTANTS[tag], at
    if tag == b"f":
        return struct.unpack_from("<d", data, at)[0], at + 8
    if tag == b"c":
        return complex(*struct.unpack_from("<dd", data, at)), at + 16
    (size,) = struct.unpack_from("<Q", data, at)
    at += 8
    if tag == b"o":
        return thing(size), at
    if size > len(data) - at:  # an item takes a byte at least
        raise ValueError("a length is too long")
    if tag in CONTENTS:
        return CONTENTS[tag](data[at : at + size]), at + size
    if tag not in COLLECTIONS:
        raise ValueError("an unknown tag")
    items = []
    for _ in range(size):
        item, at = _decode(data, at, thing)
        items.append(item)
    return COLLECTIONS[tag](items), at


CONSTANTS = {b"N": None, b"1": True, b"0": False}
PLAIN = (int, float, complex, bool, str, bytes, bytearray, range, list, tuple, set, frozenset, dict, type(None))
TYPES = {kind.__name__.encode(): kind for kind in PLAIN}
CONTENTS: dict[bytes, Callable[[bytes], Any]] = {
    b"T": TYPES.__getitem__,
    b"i": lambda content: int.from_bytes(content, "little", signed=True),
    b"s": lambda content: content.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"a": bytearray,
}
COLLECTIONS: dict[bytes, Callable[[list], Any]] = {
    b"l": list,
    b"t": tuple,
    b"e": set,
    b"z": frozenset,
    b"d": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    b"r": lambda items: range(*items),
}


def send(pipe: int, data: bytes) -> None:
    """One message: its length in 8 bytes, then the message."""
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int, limit: int) -> bytes:
    """The next message. EOFError where the other side is gone, ValueError for one that is longer than `limit`."""
    (size,) = struct.unpack("<Q", _read(pipe, 8))
    if size > limit:
        raise ValueError(f"a message of {size} bytes")
    return _read(pipe, size)


def _read(pipe: int, size: int) -> bytes:
    chunks = []
    while size:
        chunk = os.read(pipe, min(size, 1 << 20))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


# --- the candidate -----------------------------------------------------------------------------------------------------


def candidate(requests: int, replies: int, source: bytes) -> NoReturn:
    """Execute the program, then answer requests until there is nobody to ask."""
    module = type(sys)("solution")
    sys.modules["solution"] = module  # dataclasses and the like look their module up
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    objects: list[Any] = [module]
    numbers: dict[int, int] = {id(module): 0}

    def number(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    while True:
        operation, args, kwargs = decode(receive(requests, sys.maxsize), objects.__getitem__)
        try:
            reply = encode((True, OPERATIONS[operation](*args, **kwargs)), number)
        except Exception as error:
            names = [c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"]
            reply = encode((False, names, str(error)), number)
        send(replies, reply)


# --- the judge ---------------------------------------------------------------------------------------------------------


class Lost(BaseException):
    """The candidate is gone, or what it says is no message. No `except Exception` of a test catches it."""


class Link:
    """The judge's end of the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.things: dict[int, Remote] = {}
        self.lost = False
        self.raised: Exception | None = None  # the last exception that came from the candidate

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The candidate's answer, or its exception under the name of the nearest builtin one."""
        request = encode((operation, args, kwargs), self._number)
        try:
            send(self.requests, request)
            right, *answer = decode(receive(self.replies, MESSAGE_BYTES), self.thing)
            if right is True:
                (value,) = answer
                return value
            names, message = answer
            self.raised = _exception(names, str(message))
            if isinstance(self.raised, StopIteration) and operation != "next":
                self.raised = RuntimeError("StopIteration")  # map, zip and all would take it for the end of the test's own data
        except Exception as error:
            self.lost = True
            raise Lost(f"no answer: {type(error).__name__}: {error}") from None
        raise self.raised

    def thing(self, number: int) -> Remote:
        """The stand-in for one object of the candidate; the same one each time, so that `is` and `==` compare objects."""
        return self.things.setdefault(number, Remote(self, number))

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_Remote__number")
        raise NotPlainError(f"the tests hand over a value of type {type(value).__name__}, which cannot be sent to the program")


class Remote:
    """Stands for an object in the candidate's process. Compared by identity only (see `OPERATIONS`)."""

    __slots__ = ("__link", "__number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_Remote__link", link)
        object.__setattr__(self, "_Remote__number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols by which libraries would take an answer for more than a value
            raise AttributeError(name)
        return self.__link.ask("getattr", self, name)

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


def _compare_shapes() -> None:
    """numpy.allclose broadcasts, so that it finds an empty list close to any number; here shapes must be equal as well."""
    import numpy

    original = numpy.allclose

    def allclose(a: Any, b: Any, *args: Any, **kwargs: Any) -> bool:
        return numpy.shape(a) == numpy.shape(b) and original(a, b, *args, **kwargs)

    numpy.allclose = allclose


def _exception(names: Sequence[str], message: str) -> Exception:
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:  # UnicodeDecodeError and its like take more
                continue
    return Exception(message)


def judge(requests: int, replies: int, order: bytes) -> tuple[bytes, str]:
    """Run the tests in order in one namespace. The verdict, and what to tell people about it."""
    tests: Mapping[str, Any] = decode(order, lambda _: None)
    link = Link(requests, replies)
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        for name in tests["modules"]:
            namespace[name] = __import__(name)
        for name in tests["names"]:
            try:
                namespace[name] = link.ask("getattr", link.thing(0), name)
            except AttributeError:
                if hasattr(builtins, name):  # and the tests would meet that one instead
                    return FAILED, f"the program has no {name}"
                # else the tests meet a NameError
        if any("numpy" in piece for piece in tests["pieces"]):
            _compare_shapes()
        for i, piece in enumerate(tests["pieces"]):
            exec(compile(piece, f"<test {i}>", "exec"), namespace)
    except Lost as lost:
        return FAILED, str(lost)
    except NotPlainError as error:
        return ERROR, str(error)
    except BaseException as error:
        missing = isinstance(error, ImportError) and error is not link.raised
        return ERROR if missing else FAILED, type(error).__name__
    # a test may have swallowed `Lost` with a bare except
    return (FAILED, "no answer") if link.lost else (PASSED, "")


# --- both --------------------------------------------------------------------------------------------------------------


def limit(memory_bytes: int, processes: int, cpu_s: int, file_bytes: int) -> None:
    """Lower the limits of this process and its children; nobody in here has the right to raise them again."""
    limits = {
        "AS": memory_bytes,
        "CPU": cpu_s,
        "FSIZE": file_bytes,
        "NOFILE": 64,
        "NPROC": processes,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
    }
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            _, most = resource.getrlimit(kind)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))


def main(role: str, *arguments: str) -> None:
    requests, replies, memory_bytes, processes, cpu_s, file_bytes, uid = map(int, arguments[:7])
    sys.path.extend(arguments[7:])
    if uid:  # started as root: become nobody, for whom limits hold
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    limit(memory_bytes, processes, cpu_s, file_bytes)
    order, verdict = os.dup(0), os.dup(1)
    sink = os.open(os.devnull, os.O_RDWR)
    os.write(verdict, READY)
    for descriptor in (0, 1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
    with open(order, "rb") as file:
        text = file.read()
    try:
        if role == "candidate":
            os.close(verdict)
            candidate(requests, replies, text)
        word, detail = judge(requests, replies, text)
        os.write(verdict, word + b" " + detail.encode("utf-8", "replace")[:1000])
    finally:  # whatever ended it, SystemExit included
        os.close(requests)
        os.close(replies)
        if os.getppid() == 1:
            # Under bubblewrap: wait to be killed. Its first process outlives it for a moment when a program ends by itself,
            # and would stay as a zombie where nobody collects orphans, as in many containers.
            time.sleep(10**6)
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
