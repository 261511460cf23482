"""Which processes there are: by a mark in their environment, or by their command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def command_lines(mark: str = "") -> list[str]:
    """The command lines of all processes, or of those with this mark in their environment."""
    return list(with_mark(mark).values())


def with_mark(mark: str) -> dict[int, str]:
    """The same by the ids of the processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not mark or mark.encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                found[int(folder.name)] = line.decode(errors="replace")
        except OSError:  # it has ended, or is another user's
            continue
    return found


def unstarted(mark: str) -> list[int]:
    """The processes with this mark that are the first of a namespace, where no other process of the mark is inside one."""
    places = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                status = (folder / "status").read_text(encoding="utf-8")
                places[int(folder.name)] = next(line for line in status.splitlines() if line.startswith("NSpid")).split()[2:]
        except OSError:
            continue
    return [pid for pid, place in places.items() if place == ["1"]] if all(p in ([], ["1"]) for p in places.values()) else []


def wait_until(is_so: Callable[[], object], seconds: float, otherwise: Callable[[], object] = lambda: "") -> None:
    """Fails with what `otherwise` says where it is not so after some seconds."""
    give_up = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up, f"not within {seconds} s: {otherwise()}"
        time.sleep(0.05)


def wait_until_gone(mark: str, seconds: float) -> None:
    """Until no process has this mark in its environment."""
    wait_until(lambda: not command_lines(mark), seconds, lambda: f"still there: {command_lines(mark)}")
