"""Real sampling servers: started, signalled, killed. And weights as another client gives them."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import httpx
from conftest import ROOT

PATIENCE_S = 120  # for what takes seconds on an idle machine
START_S = 300  # for a server to start


def until(condition, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Process:
    """`python -m dash_exp.serve` on a port of its own, for a random model or that of a `run`; as a user starts it where it is
    not forked.
    """

    def __init__(self, folder, *overrides, run=None, is_forked=True):
        self.overrides = [f"run={run}" if run else "model=tiny_random", *overrides]
        self.is_forked = is_forked
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / f"{self.port}.txt"
        self.start()

    def start(self):
        arguments = [f"port={self.port}", "rollout.sampler.cpu_cache_gb=0.25"]
        arguments += ["rollout.sampler.max_sequences=64", *self.overrides]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1"}
        self.output.write_text("")
        self.stopped = set()
        if self.is_forked:
            self.process = forked.Program("dash_exp.serve", arguments, ROOT, variables, self.output, self.output)
            return
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dash_exp.serve", *arguments],
                cwd=ROOT,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # it ends with the tests, however they end
            )

    def ready(self):
        assert self.process.poll() is None, self.output.read_text()[-4000:]
        try:
            return httpx.get(f"{self.url}/weight_info", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def pid_of(self, part):
        """`server`, or the part of vLLM's name for the process: `EngineCore` or `Worker`."""
        if part == "server":
            return self.process.pid
        (pid,) = [pid for pid, name in descendants(self.process.pid).items() if part in name]
        return pid

    def stop(self, part="server"):
        """The process does nothing until `go_on`, as one that hangs."""
        self.stopped.add(self.pid_of(part))
        os.kill(self.pid_of(part), signal.SIGSTOP)

    def go_on(self):
        while self.stopped:
            os.kill(self.stopped.pop(), signal.SIGCONT)

    def kill(self, part="server"):
        if self.process.poll() is None:
            os.kill(self.pid_of(part), signal.SIGKILL)
            self.process.wait(PATIENCE_S)

    def call(self, method, route, **request):
        response = httpx.request(method, f"{self.url}{route}", timeout=PATIENCE_S, **request)
        assert response.status_code == 200, response.text
        return response

    def label(self):
        return self.call("GET", "/weight_info").json()["weight_version"]

    def rpc(self, name, seconds=PATIENCE_S, **arguments):
        return httpx.post(f"{self.url}/collective_rpc", json={"method": name, "kwargs": arguments}, timeout=seconds)

    def begin_update(self, label):
        """As a client that is about to give it weights."""
        self.call("POST", "/pause", params={"mode": "abort"})
        self.call("POST", "/update_weight_version", json={"new_version": f"loading {label}"})
        assert self.rpc("update_config", overrides={"load_config": {"load_format": "safetensors"}}).status_code == 200

    def update(self, folder, label):
        """Weights that another client has put into this folder."""
        self.begin_update(label)
        assert self.rpc("reload_weights", weights_path=str(folder)).status_code == 200
        self.call("POST", "/reset_prefix_cache")
        self.call("POST", "/update_weight_version", json={"new_version": label})
        self.call("POST", "/resume")


def descendants(pid):
    """The command lines of the processes below one, by their ids."""
    found = {}
    for children in Path("/proc", str(pid), "task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            name = command_line(child)
            found |= {child: name} | descendants(child)
    return found


def command_line(pid):
    """Empty for a process that has ended, also where nobody has asked for its status yet."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
