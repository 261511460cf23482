"""Starts one of the two processes of a sandbox: sets its limits, then becomes the candidate or the judge.

python -I -S -c PROGRAM ROLE REQUESTS REPLIES MEMORY_BYTES PROCESSES CPU_S FILE_BYTES UID SITE...
"""

from __future__ import annotations

import os
import resource
import sys
import time

from dash_exp.rewards.inside.candidate import candidate
from dash_exp.rewards.inside.judge import judge

START_S = 60.0  # a process that takes longer to start is the fault of the machine, not of the program
READY = b"+"


def limit(memory_bytes: int, processes: int, cpu_s: int, file_bytes: int) -> None:
    """Lower the limits of this process and its children. No process inside has the right to raise them again."""
    limits = {
        "AS": memory_bytes,
        "CPU": cpu_s,
        "FSIZE": file_bytes,
        "NOFILE": 64,
        "NPROC": processes,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
    }
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            _, most = resource.getrlimit(kind)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))


def main() -> None:
    role, arguments = sys.argv[1], sys.argv[2:]
    requests, replies, memory_bytes, processes, cpu_s, file_bytes, uid = map(int, arguments[:7])
    sys.path.extend(arguments[7:])
    if uid:  # started as root: change to a user without rights, for whom the limits hold
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    limit(memory_bytes, processes, cpu_s, file_bytes)
    order, verdict = os.dup(0), os.dup(1)
    sink = os.open(os.devnull, os.O_RDWR)
    os.write(verdict, READY)
    for descriptor in (0, 1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
    with open(order, "rb") as file:
        text = file.read()
    try:
        if role == "candidate":
            os.close(verdict)
            candidate(requests, replies, text)
        word, detail = judge(requests, replies, text)
        os.write(verdict, word + b" " + detail.encode("utf-8", "replace")[:1000])
    finally:  # however it ended, also by SystemExit
        for pipe in (requests, replies):
            os.closerange(pipe, pipe + 1)  # no error where the judge has closed it already
        if os.getppid() == 1:
            # With bubblewrap: wait to be killed. When a program ends by itself, bubblewrap's first process lives a moment
            # longer and would stay as a zombie where nothing collects orphans, as in many containers. The wait is long enough
            # for the other process to start and for the tests. It has an end, because nothing kills a sandbox whose owner was
            # killed while the sandbox started.
            time.sleep(START_S + cpu_s)
        os._exit(0)
