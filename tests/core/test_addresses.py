"""Addresses that can be those of a server."""

import socket

import pytest

from dash_exp.core.addresses import free_port, host_and_port, is_free, unreachable

BAD = {
    "http://127.0.0.1:80 01": "it has a space in it",
    "http://my host:8001": "it has a space in it",
    "127.0.0.1:8001": "it does not start with http:// or https://",
    "http://127.0.0.1:99999": "its port is not a number from 1 to 65535",
    "http://127.0.0.1:0": "its port is not a number from 1 to 65535",
    "http://127.0.0.1:x": "its port is not a number from 1 to 65535",
    "http://:8001": "it names no host",
    "http://a,b:8001": "it names no host",
    "http://a..b:8001": "it names no host",
    f"http://{'a' * 64}:8001": "it names no host",
}


@pytest.mark.parametrize("address", BAD)
def test_what_is_wrong_is_said(address):
    with pytest.raises(ValueError, match=BAD[address]):
        host_and_port(address, "http", "https")


def test_host_and_port():
    assert host_and_port("http://127.0.0.1:8001/", "http", "https") == ("127.0.0.1", 8001)
    assert host_and_port("https://node-3.cluster_a.example", "http", "https") == ("node-3.cluster_a.example", None)
    assert host_and_port("http://[::1]:8001", "http") == ("::1", 8001)


def test_whether_something_listens():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert unreachable("127.0.0.1", port, 1.0) is None
        assert not is_free("127.0.0.1", port)
    assert unreachable("127.0.0.1", port, 1.0) == "Connection refused"


def test_a_free_port():
    class First(set):
        """Holds the first number that it is asked for."""

        def __contains__(self, port):
            return super().__contains__(port) or (not self and self.add(port) is None)

    others = First()
    port = free_port("127.0.0.1", others)
    assert len(others) == 1
    assert port not in others
    assert is_free("127.0.0.1", port)
