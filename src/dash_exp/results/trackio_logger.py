"""Logging to Trackio: a database on this machine (`trackio show`), or a Space. Lightning has no logger for it."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from dash_exp.results.trackers import flat_settings, keep_id, known_id, last_row, numbers

ID_FILE = "trackio_id"  # in the run folder


class TrackioLogger(Logger):
    """Rows for a run of Trackio, each once: `sent` is the last outer step that an earlier attempt gave."""

    def __init__(self, run: Any, sent: int) -> None:
        super().__init__()
        self.run, self.sent = run, sent

    @property
    def name(self) -> str:
        return str(self.run.name)

    @property
    def version(self) -> str:
        return str(self.run.id)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the run has them since it was started."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.sent:  # Trackio has its own column `step`
            self.run.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def finish(self, run_dir: Path, result: Mapping[str, Any]) -> None:
        import trackio

        self.run.log(numbers(result), step=int(result.get("steps") or 0))
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # of the run and of what Trackio would do, and print, when the process ends


def trackio_logger(
    run_dir: Path,
    name: str,
    group: str | None,
    settings: dict[str, Any],
    project: str,
    space_id: str | None = None,
    private: bool = True,
) -> TrackioLogger:
    """Start a run of Trackio, or go on with that of this folder, whose id the file `trackio_id` keeps.

    By itself Trackio would go on with the newest run of the same name, which may be that of another folder. Call this while
    `metrics.csv` is still the file of the earlier attempt.
    """
    import trackio

    told = {**settings, "place": [project, space_id]}  # what another run of Trackio would differ in
    known = known_id(run_dir / ID_FILE, told)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints six lines
        run = trackio.init(
            project=project,
            name=name,
            group=group,
            space_id=space_id,
            private=private,
            config=flat_settings(run_dir, settings),
            resume="never",
            embed=False,
            auto_log_gpu=False,  # threads beside a run whose seconds are compared
            auto_log_cpu=False,
        )
    run.id = known or secrets.token_hex(16)
    keep_id(run_dir / ID_FILE, run.id, told)
    return TrackioLogger(run, last_row(run_dir) if known else -1)
