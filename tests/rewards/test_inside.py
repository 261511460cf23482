"""The codec of a sandbox. What candidate and judge do with it: test_sandbox.py."""

import struct

import pytest

from dash_exp.rewards.inside import wire


def test_bytes_that_say_nothing_are_refused():
    def thing(number):
        raise AssertionError

    eight = (1).to_bytes(8, "little")
    for data in (
        b"",
        b"?",
        b"l",
        b"l" + eight,
        b"i" + eight,
        b"NN",
        b"f123",
        b"d" + eight + b"N",
        b"e" + eight + b"l" + bytes(8),
    ):
        with pytest.raises((ValueError, TypeError, struct.error)):
            wire.decode(data, thing)
    with pytest.raises((ValueError, KeyError)):
        wire.decode(b"T" + (4).to_bytes(8, "little") + b"eval", thing)


def sized(tag, *items):
    return tag + len(items).to_bytes(8, "little") + b"".join(items)


def text(value):
    return b"s" + len(value).to_bytes(8, "little") + value


@pytest.mark.parametrize(
    "data",
    [
        sized(b"v", text(b"os.system"), text(b"true")),  # a constructor of its own
        sized(b"v", text(b"builtins.eval"), text(b"1")),
        sized(b"v", text(b"fractions.Fraction"), b"o" + bytes(8)),  # it would ask the object while it is made
        sized(b"v", text(b"numpy.ndarray"), text(b"|O8"), sized(b"t"), b"b" + (8).to_bytes(8, "little") + bytes(8)),  # pointers
        sized(b"v", text(b"numpy.ndarray"), text(b"<f8"), sized(b"t"), b"b" + bytes(8)),  # a shape for more than there is
        b"m" + (7).to_bytes(8, "little"),  # a container that is not there
    ],
)
def test_values_are_made_by_their_constructors_from_plain_values_only(data):
    with pytest.raises((ValueError, KeyError, IndexError)):
        wire.decode(data, lambda number: object.__new__(type("Remote", (), {})))


def test_containers_are_the_same_on_both_sides():
    inner = [1]
    sent, received = [], []
    data = wire.encode(((inner, {"k": inner}), inner), int, sent)
    (first, second), third = wire.decode(data, int, received)
    assert first is second["k"] is third
    assert sent[0] is inner
    assert received == sent == [[1], {"k": [1]}]
    first.append(2)
    reply = wire.encode((first, wire.content_of(first)), int, received)
    same, content = wire.decode(reply, int, sent)
    wire.fill(sent[0], content)
    assert same is inner
    assert inner == [1, 2]
