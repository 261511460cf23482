"""The sampler of a run; where servers on the devices of the run sample, these are started first."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.commands.parts import made
from dash_exp.core import files
from dash_exp.distributed import server_store
from dash_exp.sampling.base import Sampler
from dash_exp.sampling.own_servers import SETTING, OwnServers
from dash_exp.sampling.server_room import delete_left_behind, locked

FOLDER = f"dash_exp_servers@{platform.node()}@"  # begins the name of a folder with the settings for servers that start

log = logging.getLogger(__name__)


def sampler_of(cfg: DictConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> Sampler:
    """`rollout.sampler`, made. `output`: the folder for what servers of its own print."""
    given = {"policy": policy, "tokenizer": tokenizer, "compute_dtype": getattr(torch, cfg.model.compute_dtype)}
    if cfg.rollout.sampler.get("server_nodes"):
        return made(cfg, "rollout.sampler")(**given, servers=server_store.addresses())
    if not colocated(cfg):
        return made(cfg, "rollout.sampler")(**given)
    own = started(cfg, output)
    try:
        return made(cfg, "rollout.sampler")(**given, servers=own.urls, own=own)
    except BaseException:
        own.close()
        raise


def colocated(cfg: DictConfig) -> bool:
    """Whether the run samples on servers that it starts on its own devices."""
    return bool(cfg.rollout.sampler.get("colocate"))


def started(cfg: DictConfig, output: Path) -> OwnServers:
    """The servers of a run with these settings, which are ready."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        log.warning("%s: without a GPU a sampling server gives back no memory while the policy trains", SETTING)
    delete_left_behind(Path(tempfile.gettempdir()), FOLDER)
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:  # they have read it when they are ready
        lock = locked(Path(folder))
        try:
            files.write_whole(Path(folder) / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            return OwnServers(Path(folder), output, gpus(cfg), on_gpu, cfg.rollout.sampler.give_up_s)
        finally:
            lock.release()


def gpus(cfg: DictConfig) -> Sequence[str | None]:
    """The GPUs that the run trains on, by their names in CUDA_VISIBLE_DEVICES; without any the one place for a server."""
    if cfg.trainer.accelerator != "gpu" or not torch.cuda.is_available():
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [name.strip() for name in visible.split(",")][: cfg.trainer.devices]
