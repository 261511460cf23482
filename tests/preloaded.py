"""What the server that forks programs (see `forked.py`) has imported before: the packages of runs, evaluation and servers."""

import gc
import importlib.util
import os

gc.disable()
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # vLLM compiles a function of some lines with each engine, for seconds
import matplotlib.pyplot  # noqa: E402, F401
import pandas  # noqa: E402, F401

import dash_exp.commands.evaluate  # noqa: E402
import dash_exp.commands.rank  # noqa: E402
import dash_exp.commands.run  # noqa: E402, F401
from dash_exp.sampling import engine  # noqa: E402

if importlib.util.find_spec("vllm"):
    os.environ.update({k: v for k, v in engine.ENVIRONMENT.items() if k not in os.environ})
    for name in ("vllm", "vllm.distributed", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"):
        importlib.import_module(name)
gc.freeze()  # or each process would copy all of it
gc.enable()
