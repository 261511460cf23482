"""A stand-in for `python -m dash_exp.serve run=FOLDER port=N`: a process with a `StandIn`, without torch.

The file `how` in FOLDER says what it does: nothing as in `ready`; `fails`, `silent` or `stubborn` (SIGTERM does not end it),
with a port after it only where it is to listen there. What it is asked is in the file `asked`, a line for each call.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from stand_in import StandIn

from dash_exp.core import process
from dash_exp.sampling.own_servers import STARTED_BY

VARIABLES = ("CUDA_VISIBLE_DEVICES", "RANK")


class Written(list):
    """A list whose items also become lines of a file."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def append(self, item):
        super().append(item)
        with self.file.open("a") as file:
            file.write(f"{json.dumps(item)}\n")


def serve(port, asked, **facts):
    """Until SIGTERM."""
    server = StandIn(port=port, pid=os.getpid(), **facts)
    server.called = Written(asked)
    threading.Event().wait()


def main():
    process.end_with(int(os.environ[STARTED_BY]))
    given = dict(word.partition("=")[::2] for word in sys.argv[1:3])
    folder, port = Path(given["run"]), given["port"]
    how, _, there = (folder / "how").read_text().partition(" ")
    if there in ("", port):
        if how == "fails":
            sys.exit("error: model: cannot be loaded. Choose another.")
        if how == "silent":
            threading.Event().wait()
        if how == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    about = {name: os.environ.get(name) for name in VARIABLES} | {"further": sys.argv[3:]}
    serve(int(port), folder / "asked", **about)


if __name__ == "__main__":
    main()
