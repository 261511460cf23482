"""Sampling servers that a run starts itself, on the devices that it trains on: processes of `python -m dash_exp.serve`.

They end with this process: here at its end, and by Linux where it is killed (`process.end_with`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dash_exp.core.addresses import free_port, is_free
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line

SETTING = "rollout.sampler.colocate=true"
PROGRAM = "dash_exp.serve"
STARTED_BY = "DASH_EXP_STARTED_BY"  # the variable with the id of the process that it ends with
HOST = "127.0.0.1"
TRIES = 3  # of a server, where other programs take its port while it starts
PROBE_S = 3.0  # for it to say who it is
LOOK_S = 0.5
SAY_EVERY_S = 30.0
END_S = 20.0  # for all of them to end by themselves
# Variables that are about the ranks of this run, or about an engine in this process.
NOT_FOR_THEM = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "VLLM_ENABLE_V1_MULTIPROCESSING")

log = logging.getLogger(__name__)


class OwnServers:
    """One server on each of `gpus`: what CUDA_VISIBLE_DEVICES is for it, or None to leave that variable as it is.

    The constructor starts them and waits until they have loaded their models. Raises UserError where one ends, or is not ready
    after `within_s` seconds. They have the settings of the run in the folder `settings`, and write what they print into the
    folder `output`. `sleep`: on GPUs they can give their memory back.
    """

    def __init__(self, settings: Path, output: Path, gpus: Sequence[str | None], sleep: bool, within_s: float) -> None:
        further = ["--", "--enable-sleep-mode"] if sleep else []
        self._each: list[_Server] = []
        print(f"starts {len(gpus)} sampling server(s), which print into {output}/sampling_server_*.txt", flush=True)
        try:
            for i, gpu in enumerate(gpus):
                self._each.append(_Server(settings, output / f"sampling_server_{i + 1}.txt", gpu, further))
            self._wait(within_s)
            print(f"sampling servers of this run: {', '.join(self.urls)}", flush=True)
        except BaseException:
            self.close()
            raise

    def _wait(self, within_s: float) -> None:
        began = said = time.monotonic()
        while late := [server for server in self._each if not server.is_ready()]:
            waited_s = time.monotonic() - began
            if waited_s > within_s:
                wrong = f"{len(late)} of {len(self._each)} sampling server(s) did not start within {within_s:g} s"
                raise UserError(SETTING, wrong, f"See {late[0].output}, or raise rollout.sampler.give_up_s")
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                print(f"waits for {len(late)} of {len(self._each)} sampling server(s), {waited_s:.0f} s so far", flush=True)
            time.sleep(LOOK_S)

    @property
    def urls(self) -> list[str]:
        """Their addresses."""
        return [server.url for server in self._each]

    def have_ended(self) -> bool:
        """Whether none is left."""
        return all(server.process.poll() is not None for server in self._each)

    @property
    def outputs(self) -> str:
        """The files with what they print."""
        return ", ".join(str(server.output) for server in self._each)

    def close(self) -> None:
        """End them. What does not end by itself is killed."""
        for server in self._each:
            server.ask_to_end()
        until = time.monotonic() + END_S
        for server in self._each:
            server.end(until)


class _Server:
    """The process of one of them, and where it listens."""

    def __init__(self, settings: Path, output: Path, gpu: str | None, further: Sequence[str]) -> None:
        self.settings, self.output, self.gpu, self.further = settings, output, gpu, further
        self.tries = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        self.tries += 1
        self.port = free_port(HOST)
        command = [sys.executable, "-m", PROGRAM, f"run={self.settings}", f"port={self.port}", *self.further]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=variables(self.gpu),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run, which may still need it
            )

    def is_ready(self) -> bool:
        """Whether it has loaded its model. Where another program has taken its port, it is started again at another one.

        UserError where it has ended for any other reason.
        """
        status = self.process.poll()
        if status is None:
            who = self._answering()
            if who in (None, self.process.pid):
                return who is not None
        elif is_free(HOST, self.port):
            lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = first_line(lines[-1] if lines else "it printed nothing").removeprefix("error: ").rstrip(".")
            raise UserError(SETTING, f"a sampling server ended with status {status} ({said})", f"See {self.output}")
        if self.tries == TRIES:
            wrong = f"other programs have taken the port of a sampling server {TRIES} times, last {self.port}"
            raise UserError(SETTING, wrong, "Start the run again")
        log.warning("another program has taken port %d, so a sampling server is started again at another one", self.port)
        self.ask_to_end()
        self.end(time.monotonic() + END_S)
        self.start()
        return False

    def _answering(self) -> int | None:
        """The id of the process that answers at the port, as it says itself: -1 for another program, None for none so far."""
        import httpx  # here: commands that read this file for its names need not wait for it

        try:
            response = httpx.get(f"{self.url}/v1/models", timeout=PROBE_S, trust_env=False)
        except httpx.HTTPError:
            return None
        if response.status_code >= 500:
            return None
        try:
            return int(json.loads(response.json()["data"][1]["id"])["pid"])
        except (ValueError, LookupError, TypeError):
            return -1

    def ask_to_end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def end(self, until: float) -> None:
        """Wait for its end, and kill what is left of it then."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def variables(gpu: str | None) -> dict[str, str]:
    """The environment of a server."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(NOT_FOR_THEM)}
    found |= {STARTED_BY: str(os.getpid()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return found if gpu is None else found | {"CUDA_VISIBLE_DEVICES": gpu}
