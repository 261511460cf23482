"""Start one sampling server, for the runs with rollout=vllm_server.

    python -m dash_exp.serve port=8001 [name=value ...]

port=8001           where it listens
host=127.0.0.1      which requests it accepts: only those of this machine, or with 0.0.0.0 those of every machine that can reach
                    it. There is no password: whoever can reach it can sample and replace the weights
model=qwen2.5-0.5b  and any other setting of train.py, with the value that the run has: model.path=DIR, model.compute_dtype,
                    experiment, and for the engine rollout.sampler.max_sequences=256, .max_model_len, .memory_share, .eager

A server loads the architecture and the tokenizer; the weights come from the run. On a machine with several GPUs start one
server for each: CUDA_VISIBLE_DEVICES=1 python -m dash_exp.serve port=8002. Ctrl-C ends it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands import cli
from dash_exp.core.errors import UserError
from dash_exp.settings.validate import validate

if TYPE_CHECKING:  # it loads torch, which is needed only after the command was found good
    from dash_exp.sampling.server import EngineServer

ENGINE = ("max_sequences", "max_model_len", "memory_share", "cpu_cache_gb", "eager")


@dataclass(frozen=True)
class Command:
    """The command line: where to listen, and overrides of the configuration."""

    port: int
    host: str
    overrides: list[str]


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    cfg = configuration(command)
    listener = listening(command)
    # Before torch is loaded. Servers share the machine's cores, and waiting threads that spin would slow all of them down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    server = build(cfg)
    with contextlib.suppress(KeyboardInterrupt):
        serve(server, listener, f"http://{command.host}:{command.port} for {cfg.model.name}")


def parse(arguments: Sequence[str]) -> Command:
    """Read and check the command line."""
    own = {"host": "127.0.0.1"}
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(argument, "is not of the form name=value", "See --help")
        if name in ("port", "host"):
            own[name] = value.strip()
        else:
            overrides.append(argument)
    port = own.get("port", "")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"port={port}", "is not a whole number from 1 to 65535", "Write port=8001")
    return Command(int(port), own["host"], overrides)


def configuration(command: Command) -> DictConfig:
    """The settings of train.py with the model and the engine of this server. They are checked, and nothing is loaded."""
    overrides = command.overrides
    if not any(o.startswith("rollout=") for o in overrides):
        overrides = ["rollout=vllm_server", *overrides]
    cfg = cli.composed(overrides)
    if missing := [name for name in ENGINE if name not in cfg.rollout.sampler]:
        raise UserError("rollout", f"has no settings for an engine ({', '.join(missing)})", "Leave it out, or use vllm_server")
    validate(cfg)
    return cfg


def listening(command: Command) -> socket.socket:
    """A socket that holds the port. It accepts no connection before there is a server to answer."""
    listener = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(command.host, command.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"host={command.host} port={command.port}",
            f"the server cannot listen there ({error.strerror})",
            "Choose another port, or an address of this machine",
        ) from error
    return listener


def build(cfg: DictConfig) -> EngineServer:
    """The engine with the architecture of the policy, warmed up, and without weights."""
    import torch

    from dash_exp.models import loading
    from dash_exp.sampling.engine import Engine, described, fingerprint
    from dash_exp.sampling.server import EngineServer

    architecture: Any = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None
    policy = loading.load_architecture(cfg.model.path, architecture)
    tokenizer = loading.load_tokenizer(cfg.model.tokenizer)
    eos_ids = loading.eos_ids(policy, tokenizer)
    on_gpu = torch.cuda.is_available()
    settings = {name: cfg.rollout.sampler[name] for name in ENGINE}
    rank = cfg.model.lora.r if cfg.model.adapter else None
    dtype = getattr(torch, cfg.model.compute_dtype)
    engine = Engine(policy.config, eos_ids, dtype, receive=on_gpu, lora_rank=rank, tokenizer=tokenizer, **settings)
    engine.warm_up()
    about = {
        "model": f"{cfg.model.name} ({described(policy.config, engine.expected)})",
        "fingerprint": fingerprint(policy.config, engine.expected),
        "max_model_len": engine.max_model_len,
        "max_sequences": settings["max_sequences"],
        "dtype": cfg.model.compute_dtype,
        "eos_ids": sorted(eos_ids),
        "lora_rank": rank,
    }
    return EngineServer(engine, "cuda" if on_gpu else "cpu", about)


def serve(server: EngineServer, listener: socket.socket, says: str) -> None:
    """Answer requests until the engine fails. HTTP runs in its own thread, the engine in this one."""
    import uvicorn

    from dash_exp.sampling.server import application

    config = uvicorn.Config(application(server), log_level="warning", access_log=False, lifespan="off")
    http = uvicorn.Server(config)
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True, name="http")
    thread.start()
    while not http.started:
        assert thread.is_alive(), "the HTTP server did not start"
        time.sleep(0.05)
    print(f"listening on {says}", flush=True)
    server.run()
