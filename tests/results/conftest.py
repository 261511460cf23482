"""Fixtures of the tests of W&B: the real SDK against a stand-in server on loopback."""

import signal
import socket
from pathlib import Path

import pytest
import torch
from wandb_helpers import Recorder, end_service, enter, environment
from wandb_server import KEY, WandbServer


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bounded():
    """No test waits for longer than this, whatever the SDK waits for."""

    def stop(*_):
        raise TimeoutError("the test took too long")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def recorder():
    found = Recorder()
    with socket.create_connection(found.socket.getsockname(), timeout=10) as own:
        own.recv(1)  # nothing, when it has been counted and closed
    assert found.connections == 1
    found.connections = 0
    yield found
    found.socket.close()


@pytest.fixture
def server():
    with WandbServer() as found:
        yield found
        end_service()  # while it still answers


@pytest.fixture
def online(server, monkeypatch, tmp_path):
    enter(monkeypatch, environment(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY))


@pytest.fixture
def offline(recorder, monkeypatch, tmp_path):
    enter(monkeypatch, environment(tmp_path, WANDB_BASE_URL=recorder.url, HTTPS_PROXY=recorder.url, HTTP_PROXY=recorder.url))
    yield
    end_service()


@pytest.fixture
def cell(tmp_path) -> Path:
    folder = tmp_path / "small" / "seed=0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("batch: {prompts: 8}\nseed: 0\n")
    return folder
