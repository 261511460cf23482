"""Runs untrusted programs against tests, each in isolated processes of its own, and says which ones pass.

Each program takes two processes: the candidate runs the program; the judge, which shares nothing with the candidate but two
pipes, runs the tests (`inside`). The verdict comes from the judge. This file starts both, limits the time, and kills
them.

`isolation="bwrap"` (bubblewrap) gives each process its own namespaces: no network, no other process is visible, and the file
system has only the system's programs and Python's libraries, read-only, and an empty /tmp in memory (`bubblewrap`, `seccomp`).
`isolation="process"` is weaker and must be chosen explicitly: a process with limits and no environment, but with the rights of
the user. There a child process that starts its own session outlives its program, and the limit on processes does not hold for
root; for others it counts all that the user has, so a program can start none.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import platform
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dash_exp.core.errors import UserError
from dash_exp.rewards import bubblewrap, inside, seccomp
from dash_exp.rewards.inside import start
from dash_exp.rewards.inside.judge import ERROR, FAILED, PASSED
from dash_exp.rewards.sandbox_order import NoTestsError, order_of

Status = Literal["passed", "failed", "timeout", "error"]

JUDGE_BYTES = 1024**3
JUDGE_PROCESSES = 32
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",  # a thread counts as a process
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Outcome:
    """The result of one program. "error" is a failure of the sandbox or of the tests, never of the program."""

    status: Status
    detail: str = ""


class Sandbox:
    """`grade` may be called from many threads at once.

    `timeout_s`: seconds for the program and its tests together, without the start. `memory_mb`: MiB of address space for each
    process of the program. `processes`: how many processes and threads the program may have at a time. So a program has at most
    memory_mb x processes of memory and 16 MiB of files, and its answers can make the judge take up to 1 GiB. Raises UserError
    where this machine cannot isolate programs in this way.
    """

    def __init__(self, isolation: str = "bwrap", timeout_s: float = 5.0, memory_mb: int = 512, processes: int = 1) -> None:
        if isolation not in ("bwrap", "process"):
            raise UserError(f"reward.isolation={isolation}", "is not known", "Use bwrap, or process, which is weaker")
        self.timeout_s = timeout_s
        self.memory_bytes = memory_mb * 1024 * 1024
        self.processes = processes
        self._prefix = bubblewrap.command() if isolation == "bwrap" else None
        outcome = self.grade("def one():\n    return 1", ("assert one() == 1",))
        if outcome.status == "passed":
            return
        if isolation == "process":
            raise UserError("reward.isolation=process", f"does not work here ({outcome.detail or outcome.status})", "Use bwrap")
        raise UserError(
            "reward.isolation=bwrap",
            f"bubblewrap cannot start a sandbox here ({outcome.detail or outcome.status})",
            "It must be version 0.7 or newer and must be allowed to create namespaces (in a container: privileged; on Ubuntu: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0). reward.isolation=process runs programs without it, "
            "with the rights of the user",
        )

    def grade(self, program: str, tests: tuple[str, ...]) -> Outcome:
        """Whether all pieces of `tests`, with the names that `program` defines, run to their end without an exception."""
        try:
            order = order_of(tests)
        except NoTestsError as error:
            return Outcome("error", f"the tests {error}")
        cpu_s = math.ceil(self.timeout_s) + 1
        with contextlib.ExitStack() as stack:
            request_out, request_in, reply_out, reply_in = (*os.pipe(), *os.pipe())
            with contextlib.ExitStack() as handed_over:
                for end in (request_out, request_in, reply_out, reply_in):
                    handed_over.callback(os.close, end)
                limits = (self.memory_bytes, self.processes, cpu_s)
                candidate = stack.enter_context(self._process("candidate", request_out, reply_in, *limits))
                limits = (JUDGE_BYTES, JUDGE_PROCESSES, cpu_s)
                judge = stack.enter_context(self._process("judge", request_in, reply_out, *limits))
            stack.callback(candidate.kill)  # both are killed before either is waited for
            for process in (candidate, judge):
                if not process.is_ready():
                    return Outcome("error", process.last_words())
            deadline = time.monotonic() + self.timeout_s
            judge.feed(order, is_all=True)
            candidate.feed(program.encode("utf-8", "surrogatepass"), is_all=True)
            verdict = judge.read(deadline, 4096)
            if verdict is None:
                return Outcome("timeout", f"more than {self.timeout_s} s")
            word, _, detail = verdict.decode("utf-8", "replace").partition(" ")
            for status in (PASSED, FAILED, ERROR):
                if word == status.decode():
                    return Outcome(status.decode(), detail)  # type: ignore[arg-type]
            return Outcome("error", "the judge died")

    @contextlib.contextmanager
    def _process(
        self, role: str, requests: int, replies: int, memory_bytes: int, processes: int, cpu_s: int
    ) -> Iterator[_Process]:
        """One process of a sandbox; when the block ends, nothing of it is left (with bubblewrap)."""
        uid, folder, info, rules = 0, None, None, None
        handed_over = [requests, replies]
        prefix: list[str] = []
        with contextlib.ExitStack() as stack:
            if self._prefix is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dash_exp-", ignore_cleanup_errors=True))
            else:
                # A file, not a pipe: bubblewrap would end by writing into a pipe whose reader was killed, and its child would
                # then wait for it for ever.
                info = os.memfd_create("info")
                stack.callback(os.close, info)
                rules, rules_in = os.pipe()
                os.write(rules_in, seccomp.rules(platform.machine()))
                os.close(rules_in)
                handed_over += [info, rules]
                prefix = [*self._prefix, "--info-fd", str(info), "--seccomp", str(rules), "--"]
                if os.geteuid() == 0:
                    uid = 20_000 + secrets.randbelow(40_000)  # limits on processes are counted by user
                else:
                    processes += 1  # bubblewrap's own process counts there
            code = modules()
            command = [*prefix, *interpreter(), "-c", PROGRAM.format(size=len(code)), role]
            command += map(str, (requests, replies, memory_bytes, processes, cpu_s))
            try:
                popen = subprocess.Popen(
                    [*command, str(bubblewrap.FILE_BYTES), str(uid), *bubblewrap.site_folders()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=handed_over,
                    env=ENVIRONMENT,
                    cwd=folder or "/",
                    start_new_session=True,
                    bufsize=0,
                )
            finally:
                if rules is not None:
                    os.close(rules)
            process = _Process(popen, info)
            stack.callback(process.close)
            process.feed(code)
            yield process


# What Python is started with: it reads `modules()` from its input and makes the modules.
PROGRAM = """
import marshal, sys
for name, code in marshal.loads(sys.stdin.buffer.read({size})):
    module = sys.modules[name] = type(sys)(name)
    module.__path__ = []
    exec(code, module.__dict__)
    package, _, last = name.rpartition(".")
    if package:
        setattr(sys.modules[package], last, module)
sys.modules["dash_exp.rewards.inside.start"].main()
"""


@functools.cache
def modules() -> bytes:
    """What runs inside, compiled once for all: the packages, empty, then the modules, each after those that it imports."""
    packages = ("dash_exp", "dash_exp.rewards", inside.__name__)
    code = [(name, compile("", name, "exec")) for name in packages]
    for name in ("wire", "arrays", "candidate", "judge", "start"):
        source = Path(inside.__path__[0], f"{name}.py").read_text(encoding="utf-8")
        code.append((f"{inside.__name__}.{name}", compile(source, f"{name}.py", "exec", dont_inherit=True, optimize=2)))
    return marshal.dumps(code)


@functools.cache
def interpreter() -> list[str]:
    """This Python without its environment, its user's folder and its start-up files: it starts in 10 ms instead of 30."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8"]


class _Process:
    """A started process, seen from outside."""

    def __init__(self, popen: subprocess.Popen[bytes], info: int | None) -> None:
        self.popen, self.info = popen, info
        self.first: int | None = None  # a handle on the first process of the namespace: when it is killed, all others die

    def is_ready(self) -> bool:
        """Wait until it runs inside the sandbox, with its limits set."""
        first_byte = self.read(time.monotonic() + start.START_S, 1)
        if self.info is not None:  # bubblewrap has written it before it lets the process start
            found = re.search(rb'"child-pid": (\d+)', os.pread(self.info, 4096, 0))
            with contextlib.suppress(ProcessLookupError):
                self.first = found and os.pidfd_open(int(found[1]))
        return first_byte == start.READY

    def feed(self, data: bytes, is_all: bool = False) -> None:
        """Write to its input, and close that if this is all. Whether it has died is found out by reading."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[self.popen.stdin.write(data) :]
            if is_all:
                self.popen.stdin.close()

    def read(self, deadline: float, size: int | None) -> bytes | None:
        """Up to `size` bytes of its output, b"" at its end, None where the deadline comes first."""
        assert self.popen.stdout is not None
        return _read(self.popen.stdout.fileno(), deadline, size)

    def last_words(self) -> str:
        """The last line of its error output."""
        assert self.popen.stderr is not None
        text = _read(self.popen.stderr.fileno(), time.monotonic() + 1, None) or b""
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it did not start"

    def kill(self) -> None:
        """Kill it and all processes that it started."""
        if self.first is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)

    def close(self) -> None:
        """Kill it and wait until all its processes are gone."""
        self.kill()
        self.popen.wait()  # bwrap ends when its first process has ended
        if self.first is not None:
            # readable when it is dead, which it is when all others of its namespace are
            poll = select.poll()
            poll.register(self.first, select.POLLIN)
            poll.poll(start.START_S * 1000)
            os.close(self.first)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _read(pipe: int, deadline: float, size: int | None) -> bytes | None:
    """Up to `size` bytes; with None everything until the end of the pipe or until the deadline."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    chunks: list[bytes] = []
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            return b"".join(chunks) if size is None and chunks else None
        chunk = os.read(pipe, size or 65536)
        if size is not None or not chunk:
            return b"".join([*chunks, chunk])
        chunks.append(chunk)
