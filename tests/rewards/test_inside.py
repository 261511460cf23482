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
