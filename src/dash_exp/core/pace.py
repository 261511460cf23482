"""How often something is done that takes time: every so many outer steps, every so many minutes, or for a share of the time."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMS = "a whole number of outer steps (5), a time (90s, 10m, 2h) or a share of the run's time (5%)"
WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh%])")
FIRST_S = 600.0  # with a share: until then it is done once, whatever it takes, so that its time is known
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Pace:
    """At most one of these is given; without one it is never done."""

    steps: int | None = None
    seconds: float | None = None
    share: float | None = None  # of the time of the run

    @classmethod
    def read(cls, value: object) -> Pace:
        """`5`, `"10m"`, `"5%"` or None, as a setting has it. Raises ValueError for anything else."""
        if value is None:
            return cls()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(steps=value)
        found = WRITTEN.fullmatch(value) if isinstance(value, str) else None
        number = float(found[1]) if found else 0.0
        if found is None or number == 0 or (found[2] == "%" and number > 100):
            raise ValueError(f"not {FORMS}")
        return cls(share=number / 100) if found[2] == "%" else cls(seconds=number * SECONDS[found[2]])

    def due(self, step: int, *, run_s: float, since_s: float, spent_s: float, next_s: float) -> bool:
        """Whether it is to be done after outer step `step` (from 1), `run_s` seconds into the run.

        `since_s`: seconds since it was last done, or since the run started. `spent_s`: the seconds that it has taken so far;
        `next_s`: those that it will take now. With a share it is done as soon as both together are at most that share, and for
        the first time at the latest after ten minutes.
        """
        if self.steps is not None:
            return step % self.steps == 0
        if self.seconds is not None:
            return since_s >= self.seconds
        if self.share is None:
            return False
        return spent_s + next_s <= self.share * run_s or (spent_s == 0 and run_s >= FIRST_S)
