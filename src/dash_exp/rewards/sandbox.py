"""Runs untrusted programs against tests, each in isolated processes of its own, and says which ones passed.

Two processes a program: the candidate executes it, and the judge, which shares nothing with the candidate but two pipes,
executes the tests (`sandbox_inside`). The verdict comes from the judge. This file starts both, keeps the time, and kills them.

`isolation="bwrap"` (bubblewrap) gives each process namespaces of its own: no network, no other process in sight, a file system
with nothing but the system's programs and Python's libraries, read-only, and an empty /tmp in memory. `isolation="process"`
is weaker and has to be asked for by name: a process with limits and no environment, but with the rights of the user. There
a child that starts a session of its own outlives its program, and for root no limit on processes holds.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import errno
import functools
import importlib.util
import math
import os
import platform
import re
import secrets
import select
import shutil
import signal
import struct
import subprocess
import symtable
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dash_exp.core.errors import UserError
from dash_exp.rewards import sandbox_inside as inside

Status = Literal["passed", "failed", "timeout", "error"]

START_S = 60.0  # a machine that needs longer to start a process is at fault, not the program
FILE_BYTES = 16 * 1024 * 1024  # of /tmp in all, and of one file
JUDGE_BYTES = 1024**3
JUDGE_PROCESSES = 32


@dataclass(frozen=True)
class Outcome:
    """What came of one program. "error" is a failure of the sandbox or of the tests, never of the program."""

    status: Status
    detail: str = ""


class Sandbox:
    """`grade` may be called from many threads at once.

    `timeout_s`: seconds for the program and its tests together, start-up excluded. `memory_mb`: MiB of address space of one of
    the program's processes. `processes`: how many of these, threads counted, there may be at a time. So the program has at
    most memory_mb x processes and 16 MiB of files, and its answers can make the judge take up to 1 GiB. UserError where this
    machine cannot isolate in the way that is asked for.
    """

    def __init__(self, isolation: str = "bwrap", timeout_s: float = 5.0, memory_mb: int = 512, processes: int = 1) -> None:
        if isolation not in ("bwrap", "process"):
            raise UserError(f"reward.isolation={isolation}", "is not known", "Use bwrap, or process, which is weaker")
        self.timeout_s = timeout_s
        self.memory_bytes = memory_mb * 1024 * 1024
        self.processes = processes
        self._prefix = bubblewrap() if isolation == "bwrap" else None
        outcome = self.grade("def one():\n    return 1", ("assert one() == 1",))
        if outcome.status == "passed":
            return
        if isolation == "process":
            raise UserError("reward.isolation=process", f"does not work here ({outcome.detail or outcome.status})", "Use bwrap")
        raise UserError(
            "reward.isolation=bwrap",
            f"bubblewrap cannot start a sandbox here ({outcome.detail or outcome.status})",
            "It must be 0.7 or newer and allowed to make namespaces (in a container: privileged; on Ubuntu: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0). reward.isolation=process runs programs without it, "
            "with the rights of the user",
        )

    def grade(self, program: str, tests: tuple[str, ...]) -> Outcome:
        """Whether all pieces of `tests` run to their end with the names of `program`."""
        try:
            order = questions(tests)
        except (SyntaxError, ValueError) as error:
            return Outcome("error", f"the tests: {error}")
        with contextlib.ExitStack() as stack:
            request_out, request_in, reply_out, reply_in = (*os.pipe(), *os.pipe())
            with contextlib.ExitStack() as handed_over:
                for end in (request_out, request_in, reply_out, reply_in):
                    handed_over.callback(os.close, end)
                limits = (self.memory_bytes, self.processes, math.ceil(self.timeout_s) + 1)
                candidate = stack.enter_context(self._process("candidate", request_out, reply_in, *limits))
                limits = (JUDGE_BYTES, JUDGE_PROCESSES, math.ceil(self.timeout_s) + 1)
                judge = stack.enter_context(self._process("judge", request_in, reply_out, *limits))
            stack.callback(candidate.kill)  # both before either is waited for
            for process in (candidate, judge):
                if not process.is_ready():
                    return Outcome("error", process.last_words())
            deadline = time.monotonic() + self.timeout_s
            judge.feed(order)
            candidate.feed(program.encode("utf-8", "surrogatepass"))
            verdict = judge.read(deadline, 4096)
            if verdict is None:
                return Outcome("timeout", f"more than {self.timeout_s} s")
            word, _, detail = verdict.decode("utf-8", "replace").partition(" ")
            for status in (inside.PASSED, inside.FAILED, inside.ERROR):
                if word == status.decode():
                    return Outcome(status.decode(), detail)  # type: ignore[arg-type]
            return Outcome("error", "the judge died")

    @contextlib.contextmanager
    def _process(
        self, role: str, requests: int, replies: int, memory_bytes: int, processes: int, cpu_s: int
    ) -> Iterator[_Process]:
        """One process of a sandbox; when the block ends, nothing of it is left (under bubblewrap)."""
        become, folder = 0, None
        handed_over = [requests, replies]
        extra: list[str] = []
        with contextlib.ExitStack() as stack:
            if self._prefix is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dash_exp-", ignore_cleanup_errors=True))
                script, info = str(Path(inside.__file__)), None
            else:
                (info, info_in), (rules, rules_in) = os.pipe(), os.pipe()
                stack.callback(os.close, info)
                os.write(rules_in, seccomp(platform.machine()))
                os.close(rules_in)
                handed_over += [info_in, rules]
                extra = [*self._prefix, "--info-fd", str(info_in), "--seccomp", str(rules), "--"]
                script = INSIDE
                if os.geteuid() == 0:
                    become = 20_000 + secrets.randbelow(40_000)  # limits on processes are counted by user
                else:
                    processes += 1  # bubblewrap's own counts there
            command = [*extra, *interpreter(), script, role, *map(str, (requests, replies, memory_bytes, processes, cpu_s))]
            try:
                popen = subprocess.Popen(
                    [*command, str(FILE_BYTES), str(become), *site_folders()],
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
                for end in handed_over[2:]:
                    os.close(end)
            process = _Process(popen, info)
            stack.callback(process.close)
            yield process


class _Process:
    """A started process from outside."""

    def __init__(self, popen: subprocess.Popen[bytes], info: int | None) -> None:
        self.popen, self.info = popen, info
        self.first: int | None = None  # a handle on the first process of the namespace: with it all others die

    def is_ready(self) -> bool:
        """Wait until it is inside, with its limits set."""
        deadline = time.monotonic() + START_S
        if self.info is not None:
            found = re.search(rb'"child-pid": (\d+)', _read(self.info, deadline, None) or b"")
            with contextlib.suppress(ProcessLookupError):
                self.first = found and os.pidfd_open(int(found[1]))
        return self.read(deadline, 1) == inside.READY

    def feed(self, data: bytes) -> None:
        """Give it its whole input. One that died is found out by reading."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.popen.stdin as pipe:
            while data:
                data = data[pipe.write(data) :]

    def read(self, deadline: float, size: int | None) -> bytes | None:
        """Up to `size` bytes of its output, b"" at its end, None where the deadline came first."""
        assert self.popen.stdout is not None
        return _read(self.popen.stdout.fileno(), deadline, size)

    def last_words(self) -> str:
        """The last line that it wrote about its own failure."""
        assert self.popen.stderr is not None
        text = _read(self.popen.stderr.fileno(), time.monotonic() + 1, None) or b""
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it did not start"

    def kill(self) -> None:
        """Kill it and all that it started."""
        if self.first is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)

    def close(self) -> None:
        """Kill it and wait until all of it is gone."""
        self.kill()
        self.popen.wait()  # bwrap ends when its first process has
        if self.first is not None:
            # readable when it is dead, and it is dead when all others of its namespace are
            poll = select.poll()
            poll.register(self.first, select.POLLIN)
            poll.poll(START_S * 1000)
            os.close(self.first)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _read(pipe: int, deadline: float, size: int | None) -> bytes | None:
    """`size` None: all up to the end, or up to the deadline."""
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


# --- what is handed to the judge ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def questions(tests: tuple[str, ...]) -> bytes:
    """The judge's order: the tests, the names that the program has to give, and the modules that are imported for them.

    ValueError where the tests ask the program for nothing: any program would pass.
    """
    text = "\n".join(tests)
    table = symtable.symtable(text, "tests", "exec")
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used = _globals(table) - bound
    free = used - set(dir(builtins))
    modules = {name for name in free if _is_module(name, text)}
    names = free - modules
    if not names and len(used - modules) == 1:  # the program is asked for something with the name of a builtin function
        names = used - modules
    if not names:
        raise ValueError("they use no name of the program")

    def nothing_else(value: object) -> int:
        raise ValueError(f"{value!r} is no text")

    order = {"pieces": list(tests), "names": sorted(names), "modules": sorted(modules)}
    return inside.encode(order, nothing_else)


def _globals(table: symtable.SymbolTable) -> set[str]:
    top = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_global() or (top and s.is_referenced())}
    return found.union(*(_globals(child) for child in table.get_children()))


def _is_module(name: str, text: str) -> bool:
    """Whether a name that nobody defines means a library: it has the name of one and only its attributes are used."""
    if name not in sys.stdlib_module_names and name != "numpy":
        return False
    nodes = list(ast.walk(ast.parse(text)))
    uses = sum(isinstance(n, ast.Name) and n.id == name for n in nodes)
    return uses == sum(isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == name for n in nodes)


# --- bubblewrap --------------------------------------------------------------------------------------------------------

INSIDE = "/inside.py"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",  # a thread counts as a process
    "OMP_NUM_THREADS": "1",
}


@functools.cache
def interpreter() -> list[str]:
    """This Python without its environment, its user's folder and its start-up files, which takes 10 ms instead of 30."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8"]


@functools.cache
def site_folders() -> list[str]:
    """Where the installed packages lie, of which numpy is one; programs and tests may import them."""
    found = importlib.util.find_spec("numpy")
    return [str(Path(found.origin).parent.parent)] if found and found.origin else []


@functools.cache
def bubblewrap() -> list[str]:
    """The command that makes the namespaces and the file system. UserError where bubblewrap is not installed."""
    found = shutil.which("bwrap")
    if found is None or platform.machine() not in ARCHITECTURES:
        missing = "bubblewrap is not installed" if found is None else f"is not supported on {platform.machine()}"
        raise UserError(
            "reward.isolation=bwrap",
            f"{missing}: programs that a model wrote are not run without it",
            "Install it (apt install bubblewrap), or choose reward.isolation=process, which gives them the rights of the user",
        )
    command = [found, "--die-with-parent", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # The kernel exempts root from the limit on processes, in a user namespace of its own as well; so the process starts
        # as root and becomes somebody else by itself, after which it has no capability.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    # before the libraries: they may lie under the machine's own /tmp
    command += ["--perms", "1777", "--size", str(FILE_BYTES), "--tmpfs", "/tmp"]
    libraries = [sys.base_prefix, sys.base_exec_prefix, *site_folders()]
    libraries = [f for f in dict.fromkeys(libraries) if os.path.isdir(f) and not Path(f).is_relative_to("/usr")]
    parents = {str(parent) for f in libraries for parent in Path(f).parents} - {"/", "/tmp", *libraries}
    for folder in sorted({*parents, "/dev", "/etc"}):
        command += ["--perms", "0755", "--dir", folder]  # empty but for what is put into it here
    for folder in sorted(libraries):
        command += ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--ro-bind", inside.__file__, INSIDE]
    for device in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    # no /proc: nothing of the machine or of another process can be read there
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


# --- system calls ------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h

# System calls that a program has no use for, with their numbers on x86_64 and on aarch64 (asm/unistd.h).
DENIED = {
    # the network, also those kinds that a namespace does not cover
    "socket": (41, 198),
    # memory that counts towards no limit of a process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # wide doors into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
CLONE, CLONE3 = (56, 220), (435, 435)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET


@functools.cache
def seccomp(machine: str) -> bytes:
    """A filter of system calls as bubblewrap takes it: instructions of classic BPF over `struct seccomp_data`."""
    column = list(ARCHITECTURES).index(machine)
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, not_permitted, no_such_call = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    number, architecture, first_argument = 0, 4, 16  # offsets
    program = [  # operation, jump if true, jump if false, operand; a jump counts the instructions passed over
        (load, 0, 0, architecture),
        (equal, 1, 0, ARCHITECTURES[machine]),
        (end, 0, 0, kill),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # x32, a second set of numbers on x86_64
        (end, 0, 0, not_permitted),
        (equal, 0, 1, CLONE3[column]),  # its flags are out of reach here; C libraries then take clone
        (end, 0, 0, no_such_call),
    ]
    for numbers in DENIED.values():
        program += [(equal, 0, 1, numbers[column]), (end, 0, 0, not_permitted)]
    program += [
        (equal, 0, 3, CLONE[column]),
        (load, 0, 0, first_argument),
        (any_bit, 0, 1, NEW_NAMESPACES),
        (end, 0, 0, not_permitted),
        (end, 0, 0, allow),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
