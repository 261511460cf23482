"""Runs `train.py` in this process and records the peak memory of each phase of an outer step. Used by the other benchmarks.

    python benchmarks/peak_memory.py FILE OVERRIDE...

FILE will contain a JSON object with values in MiB: `imports` (resident after the imports), `built` (resident when the first
phase starts: model and problems are loaded), `rss` (peak resident memory by phase) and on a GPU `gpu` (peak memory allocated
by torch, by phase). Linux only.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHASES = ("sample", "score", "update", "sync")  # of an outer step, without evaluation


class PeakMemory:
    """Peak memory in MiB by phase: `with peak("sample"): ...`. Everything outside of a phase counts as `other`."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        self.phase = "other"
        self.peaks: dict[str, dict[str, float]] = {kind: {} for kind in (["rss", "gpu"] if self.cuda else ["rss"])}
        self.imports = resident("VmRSS")
        self.built: float | None = None
        self._reset()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = self.phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, phase: str) -> None:
        """End the current phase, which gets the peak since the last switch, and start another one."""
        self.built = self.built or resident("VmRSS")
        now = {"rss": resident("VmHWM")} | ({"gpu": self.cuda.max_memory_allocated() / 2**20} if self.cuda else {})
        for kind, mib in now.items():
            self.peaks[kind][self.phase] = max(mib, self.peaks[kind].get(self.phase, 0.0))
        self.phase = phase
        self._reset()

    def write(self, path: Path) -> None:
        self.switch("other")
        path.write_text(json.dumps({"imports": self.imports, "built": self.built, **self.peaks}))

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        if self.cuda:
            self.cuda.reset_peak_memory_stats()


def resident(field: str) -> float:
    """MiB from /proc: VmRSS is resident now, VmHWM is the peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main(path: Path, overrides: list[str]) -> None:
    from dash_exp.core import process

    with process.importing():  # as in `train.py`, which finds it all imported
        import dash_exp.commands.run  # noqa: F401 (everything that a run imports)
    from dash_exp.core.metrics import Clock

    peak, clock = PeakMemory(), Clock.__call__

    @contextlib.contextmanager
    def measured(self: Clock, phase: str) -> Iterator[None]:
        with clock(self, phase), peak(phase):
            yield

    Clock.__call__ = measured  # type: ignore[method-assign]
    sys.argv[1:] = overrides
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        peak.write(path)


if __name__ == "__main__":
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
