"""How many processes grade at the same time, where the user does not say."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 16  # more would not end sooner, and each takes memory
CGROUP = Path("/sys/fs/cgroup/cpu.max")  # what a container may use: microseconds of all cores in a period, and the period


def workers_for(ranks: int = 1) -> int:
    """One for each core that this process may use, if `ranks` processes of the run share them; at least 1, at most `MOST`."""
    return min(MOST, max(1, cores() // ranks))


def cores() -> int:
    """Cores that this process may use: of those that the system gives it, as many as a limit on its container allows."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text(encoding="utf-8").split()
        return max(1, min(found, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return found
