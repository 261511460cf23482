"""What the tests of sandboxes share."""

import os
import tempfile
from pathlib import Path

import pytest
from processes import command_lines

from dash_exp.rewards import bubblewrap as command_line
from dash_exp.rewards import sandbox
from dash_exp.rewards.sandbox import Sandbox


@pytest.fixture(scope="session")
def mark():
    """Stands in the environment of every process that these tests start in a sandbox."""
    return f"dash_exp-test-{os.getpid()}"


@pytest.fixture(scope="module")
def box(bubblewrap):
    return Sandbox(timeout_s=20, memory_mb=256, processes=4)


@pytest.fixture(scope="module")
def impatient(bubblewrap):
    return Sandbox(timeout_s=1, memory_mb=256, processes=4)


@pytest.fixture
def nothing_is_left(mark, tmp_path, monkeypatch):
    """After the test there is no process of a program, and no file where programs would try to leave one."""
    monkeypatch.setitem(sandbox.ENVIRONMENT, "DASH_EXP_TEST", mark)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert command_lines(mark) == []
    places = [Path(place) for place in ("/", "/tmp", "/dev", "/dev/shm", "/var/tmp", Path.home(), Path.cwd(), tmp_path)]
    assert [p for place in places for p in place.glob("left_behind*")] == []
    assert list(tmp_path.glob("dash_exp-*")) == []


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH with nothing on it but what the test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    command_line.command.cache_clear()
    yield tmp_path
    command_line.command.cache_clear()
