"""Values as bytes, and messages of bytes over a pipe.

The safety of a verdict rests on `decode`: whatever bytes a hostile process sends, it builds plain values from them, stand-ins
for objects (`thing`), or raises an exception. It never calls anything that the bytes name, other than the constructors below.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False  # importing typing and collections.abc would take longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

# --- which values are sent as such --------------------------------------------------------------------------------------

CONSTANTS = {b"N": None, b"1": True, b"0": False}
PLAIN = (int, float, complex, bool, str, bytes, bytearray, range, list, tuple, set, frozenset, dict, type(None))
TYPES = {kind.__name__.encode(): kind for kind in PLAIN}
CONTENTS: dict[bytes, Callable[[bytes], Any]] = {
    b"T": TYPES.__getitem__,
    b"i": lambda content: int.from_bytes(content, "little", signed=True),
    b"s": lambda content: content.decode("utf-8", "surrogatepass"),
    b"b": bytes,
}
FROZEN: dict[bytes, Callable[[list], Any]] = {b"t": tuple, b"z": frozenset, b"r": lambda items: range(*items)}
# Containers that can be changed. They are known by their number, in the order in which both sides meet them in one exchange.
CONTAINERS: dict[bytes, type] = {b"l": list, b"d": dict, b"e": set, b"a": bytearray}


NUMBERS_AND_TEXT = "biufcSU"  # the kinds of numpy.dtype of which arrays are sent


def content_of(container: Any) -> tuple[Any, ...]:
    """What is in a list, dict, set or bytearray; a dict gives its keys, then its values."""
    if isinstance(container, dict):
        return (*dict.keys(container), *dict.values(container))
    return (*_kind(container)[1].__iter__(container),)


def _kind(container: Any) -> tuple[bytes, Any]:
    return next((tag, kind) for tag, kind in CONTAINERS.items() if isinstance(container, kind))


def fill(container: Any, content: Sequence[Any]) -> None:
    """Make `content` what is in the container."""
    container.clear()
    if isinstance(container, list | bytearray):
        container.extend(content)
    elif isinstance(container, set):
        container.update(content)
    else:
        half = len(content) // 2
        container.update(zip(content[:half], content[half:], strict=True))


def array(kind: str, shape: tuple[int, ...], content: bytes) -> Any:
    """An array of numbers or text, from its bytes."""
    import numpy

    if not (kind[0] in "<>|" and kind[1] in NUMBERS_AND_TEXT and kind[2:].isdecimal()):
        raise ValueError("an array of other things")
    return numpy.frombuffer(content, numpy.dtype(kind)).reshape(shape).copy()


def _standard(name: str) -> Callable[..., Any]:
    def constructor(*arguments: Any) -> Any:
        module, _, kind = name.partition(".")
        return getattr(__import__(module), kind)(*arguments)

    return constructor


# Values of the standard library and of numpy: what each is made of, as plain values, and how it is made from that.
REDUCED = ("fractions.Fraction", "decimal.Decimal", *(f"datetime.{k}" for k in ("date", "time", "datetime", "timedelta")))
PARTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    **dict.fromkeys(REDUCED, lambda value: value.__reduce__()[1]),
    "datetime.timezone": lambda value: value.__getinitargs__(),
    "collections.Counter": lambda value: (dict(value),),
    "collections.OrderedDict": lambda value: (dict(value),),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "builtins.dict_keys": lambda value: (list(value),),
    "builtins.dict_values": lambda value: (list(value),),
    "builtins.dict_items": lambda value: (list(value),),
    "numpy.ndarray": lambda value: (value.dtype.str, value.shape, value.tobytes()),
}
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    **{name: _standard(name) for name in PARTS if not name.startswith(("builtins", "numpy"))},
    "builtins.dict_keys": lambda items: dict.fromkeys(items).keys(),
    "builtins.dict_values": lambda items: dict(enumerate(items)).values(),
    "builtins.dict_items": lambda items: dict(items).items(),
    "numpy.ndarray": array,
}


# --- to bytes -----------------------------------------------------------------------------------------------------------


class NotPlainError(TypeError):
    """A value that cannot be sent."""


def encode(value: Any, number: Callable[[Any], int], containers: list[Any] | None = None) -> bytes:
    """A value as bytes. `number` gives the number of an object that is not sent as such, or raises NotPlainError.

    Sent as such are the values of `PLAIN`, these types themselves, and those of `PARTS`. Of a subclass only the content is sent
    (a namedtuple as a tuple, a defaultdict as a dict); numpy's numbers become Python's. `containers`: those of the exchange so
    far, of which only the number is sent; those of this value are added.
    """
    writer = _Writer(number, [] if containers is None else containers)
    writer.write(value)
    return b"".join(writer.chunks)


class _Writer:
    def __init__(self, number: Callable[[Any], int], containers: list[Any]) -> None:
        self.number, self.containers = number, containers
        self.places = {id(container): i for i, container in enumerate(containers)}
        self.chunks: list[bytes] = []

    def write(self, value: Any) -> None:
        if value is None or value is True or value is False:
            self.chunks.append({None: b"N", True: b"1", False: b"0"}[value])
        elif isinstance(value, int):
            self._sized(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True))
        elif isinstance(value, float):
            self.chunks.append(b"f" + struct.pack("<d", value))
        elif isinstance(value, complex):
            self.chunks.append(b"c" + struct.pack("<dd", value.real, value.imag))
        elif isinstance(value, str):
            self._sized(b"s", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, bytes):
            self._sized(b"b", bytes(value))
        elif isinstance(value, tuple):
            self._items(b"t", tuple.__iter__(value))
        elif isinstance(value, frozenset):
            self._items(b"z", frozenset.__iter__(value))
        elif isinstance(value, range):
            self._items(b"r", (value.start, value.stop, value.step))
        elif isinstance(value, type) and value in PLAIN:
            self._sized(b"T", value.__name__.encode())
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in PARTS and (name != "numpy.ndarray" or value.dtype.kind in NUMBERS_AND_TEXT):
            self._items(b"v", (name, *PARTS[name](value)))
        elif isinstance(value, list | dict | set | bytearray):
            self._container(value)
        elif kind.__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
            item = value.item()
            self.write(float(item) if type(item) is kind else item)  # a longdouble's item is itself
        else:
            self.chunks.append(b"o" + struct.pack("<Q", self.number(value)))

    def _container(self, value: Any) -> None:
        place = self.places.setdefault(id(value), len(self.containers))
        if place < len(self.containers):
            self.chunks.append(b"m" + struct.pack("<Q", place))
            return
        self.containers.append(value)
        self._items(_kind(value)[0], content_of(value))

    def _sized(self, tag: bytes, content: bytes) -> None:
        self.chunks.append(tag + struct.pack("<Q", len(content)) + content)

    def _items(self, tag: bytes, content: Iterable[Any]) -> None:
        items = list(content)
        self.chunks.append(tag + struct.pack("<Q", len(items)))
        for item in items:
            self.write(item)


# --- from bytes ---------------------------------------------------------------------------------------------------------


def decode(data: bytes, thing: Callable[[int], Any], containers: list[Any] | None = None) -> Any:
    """The value that `encode` wrote. `thing` gives the object of a number; `containers` as in `encode`.

    Raises an Exception, such as ValueError, for bytes that are not a value.
    """
    reader = _Reader(data, thing, [] if containers is None else containers)
    value = reader.read()
    if reader.at != len(data):
        raise ValueError("bytes are left over")
    return value


class _Reader:
    def __init__(self, data: bytes, thing: Callable[[int], Any], containers: list[Any]) -> None:
        self.data, self.thing, self.containers, self.at = data, thing, containers, 0

    def read(self) -> Any:
        tag = self._take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == b"f":
            return struct.unpack("<d", self._take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack("<dd", self._take(16)))
        (size,) = struct.unpack("<Q", self._take(8))
        if tag in CONTENTS:
            return CONTENTS[tag](self._take(size))
        if tag == b"o":
            return self.thing(size)
        if tag == b"m":
            return self.containers[size]
        if size > len(self.data) - self.at:  # an item takes a byte at least
            raise ValueError("a length is too long")
        if tag in CONTAINERS:
            container = CONTAINERS[tag]()
            self.containers.append(container)
            fill(container, [self.read() for _ in range(size)])
            return container
        items = [self.read() for _ in range(size)]
        if tag == b"v":
            if not all(type(item).__module__ in ("builtins", "datetime") for item in items):
                raise ValueError("a value made from an object")  # which would be asked while it is made
            return CONSTRUCTORS[items[0]](*items[1:])
        return FROZEN[tag](items)

    def _take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        if len(taken) != size:
            raise ValueError("the bytes end too early")
        self.at += size
        return taken


# --- messages -----------------------------------------------------------------------------------------------------------


def send(pipe: int, data: bytes) -> None:
    """One message: its length in 8 bytes, then the message."""
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int, limit: int) -> bytes:
    """The next message. EOFError if the other side is gone, ValueError for a message longer than `limit` bytes."""
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
