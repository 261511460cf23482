"""Real sampling servers: started, signalled, killed."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

import forked
import httpx
from conftest import ROOT

PATIENCE_S = 120  # for what takes seconds on an idle machine


def until(condition, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Process:
    """`python -m dash_exp.serve` on a port of its own; as a user starts it where it is not forked."""

    def __init__(self, folder, *overrides, is_forked=True):
        self.overrides = overrides
        self.is_forked = is_forked
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / f"{self.port}.txt"
        self.start()

    def start(self):
        arguments = [f"port={self.port}", "model=tiny_random", "rollout.sampler.cpu_cache_gb=0.25"]
        arguments += ["rollout.sampler.max_sequences=64", *self.overrides]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.output.write_text("")
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
        says = self.output.read_text()
        assert self.process.poll() is None, says
        return f"listening on {self.url} for tiny_random" in says

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def health(self):
        return httpx.get(f"{self.url}/health", timeout=PATIENCE_S).json()
