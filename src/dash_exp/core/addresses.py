"""Addresses of servers, whether they can be those of one (a typing error is not waited for), and ports where none listens."""

from __future__ import annotations

import re
import socket
from collections.abc import Container
from urllib.parse import urlsplit

HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+")  # a name, or IPv6 without its brackets


def host_and_port(address: str, *schemes: str) -> tuple[str, int | None]:
    """Of `SCHEME://HOST` or `SCHEME://HOST:PORT`. Raises ValueError with what is wrong."""
    if address != "".join(address.split()):
        raise ValueError("it has a space in it")
    parts = urlsplit(address)
    if parts.scheme not in schemes:
        raise ValueError(f"it does not start with {' or '.join(f'{s}://' for s in schemes)}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is not a number from 1 to 65535")
    if not parts.hostname or not HOST.fullmatch(parts.hostname) or not _can_be_looked_up(parts.hostname):
        raise ValueError("it names no host")
    return parts.hostname, port


def _can_be_looked_up(host: str) -> bool:
    """False for a name with an empty part (`a..b`) or one of more than 63 characters, which Python cannot look up."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def unreachable(host: str, port: int, within_s: float) -> str | None:
    """Why no connection can be made within these seconds; None where one can."""
    try:
        socket.create_connection((host, port), timeout=within_s).close()
    except OSError as error:
        return str(error.strerror or error)
    return None


def is_free(host: str, port: int) -> bool:
    """Whether a program of this machine can listen there."""
    try:
        socket.create_server((host, port), family=family(host)).close()
    except OSError:
        return False
    return True


def free_port(host: str, apart_from: Container[int] = ()) -> int:
    """A port where no program listens at the moment, that is none of these."""
    while True:
        with socket.create_server((host, 0), family=family(host)) as found:
            if (port := int(found.getsockname()[1])) not in apart_from:
                return port


def family(host: str) -> socket.AddressFamily:
    """IPv6 or IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
