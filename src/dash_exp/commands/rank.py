"""The ranks of a command: the first does what it says, the others follow it.

As a module it is one rank of a run on one machine, which `several` has started:
python -m dash_exp.commands.rank PARENT RUN_DIR IN_SWEEP STARTED
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.errors import record

from dash_exp.commands import run
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.distributed import place, ranks, world
from dash_exp.distributed.ranks import OverError, Ranks
from dash_exp.distributed.world import World

Work = Callable[[DictConfig, Path, Ranks], object]  # what the others do in a run

SAME_ERROR_S = 3.0  # after an error of this rank: most likely the first has the same one, and ends the run
LOG = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # as Hydra writes it


@contextmanager
def taking_part(work: Work = run.follow) -> Iterator[None]:
    """Around what the first rank of a command does. The others follow it here, and never come out: SystemExit."""
    if place.size() == 1:
        yield
        return
    here = world.entered()
    try:
        if not here.first:
            sys.exit(followed(here, work))
        yield
    except BaseException as error:
        here.leave()
        if here.stuck or not here.first:
            end_at_once(error)
        raise
    else:
        here.leave()
        if here.stuck:  # in a sweep, whose cells have failed
            end_at_once(SystemExit(1))
    finally:
        world.left()


def end_at_once(error: BaseException) -> None:
    """End this process without Python's own end, which would wait for gloo, and that for a machine that has gone."""
    code = error.code if isinstance(error, SystemExit) else f"error: {error}"
    if not isinstance(error, SystemExit | UserError):
        traceback.print_exception(error)
    elif isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


# --- the others ----------------------------------------------------------------------------------------------------------


def followed(here: World, work: Work) -> int:
    """Follow the first rank from run to run until it leaves. Returns the exit status.

    The first handles SIGTERM, SIGUSR2 and Ctrl-C for all.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, here.expect_the_end if number == signal.SIGTERM else lambda *_: None)
    logging.getLogger("dash_exp.core.watch").setLevel(logging.ERROR)  # every rank sees the same
    warnings.simplefilter("ignore")
    try:
        with here.watched(told=lambda lost: lost), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            while (settings := here.next_run()) is not None:  # the first rank prints
                if not _follow_run(here, work, **json.loads(settings)):
                    break  # status 0: the first rank reports it, and what has started the ranks would end that at once
    except RuntimeError:  # of the store, which was in the first rank's process or in its torchrun
        return 1
    return 0


def _follow_run(here: World, work: Work, config: str, folder: str) -> bool:
    """One run. False after an error of this rank alone, which the first rank is told: this process must end, because only that
    certainly closes the connections on which others wait for it.
    """
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    try:
        with ranks.of_run(here) as group:
            work(cfg, Path(folder), group)
    except OverError:
        pass
    except Exception as error:
        if ranks.is_of_a_link(error) or here.is_over_within(SAME_ERROR_S):
            return True
        if not isinstance(error, UserError):
            traceback.print_exc()
        here.say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(str(error))}")
        return False
    return True


# --- a run on one machine ------------------------------------------------------------------------------------------------


def main() -> None:
    """One rank of it. What ends the first is told to `several` in the file that torch's launcher names."""
    parent, run_dir, in_sweep, started = sys.argv[1:]
    process.end_with(int(parent))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a job; it is for the launcher's
    process.outlast_readers()
    if place.index() == 0:
        handlers: list[logging.Handler] = [
            logging.StreamHandler(sys.stdout),
            logging.FileHandler(Path(run_dir) / "train.log", encoding="utf-8"),
        ]
        logging.basicConfig(level=logging.INFO, format=LOG, handlers=handlers)
    try:
        with process.leaving_on_sigterm(), taking_part():
            record(_lead)(Path(run_dir), in_sweep == "True", float(started))
    except UserError:
        sys.exit(1)


def _lead(run_dir: Path, in_sweep: bool, started: float) -> None:
    run.quiet()
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    run.lead(cfg, run_dir, in_sweep, time.perf_counter() - (time.time() - started))


if __name__ == "__main__":
    main()
