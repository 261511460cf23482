"""The sizes of what samples, read from `rollout.sampler`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from dash_exp.planning.machine import GIB, Device


@dataclass(frozen=True)
class SamplerSizes:
    """What samples, and what it may take."""

    kind: str  # hf, vllm or vllm_server; none where written traces are trained on
    max_sequences: int  # completions decoded at the same time
    memory_share: float  # of a GPU, for an engine
    sleeps: bool  # an engine leaves the GPU after the last sampling call of an outer step
    servers: int
    gpus_each: int  # GPUs of one server
    beside: bool  # an engine is on each device of the policy: that of the process, or a server that the run starts
    cpu_cache: float  # bytes, KV cache of an engine on a CPU
    transfer: str  # to servers: folder, nccl or auto
    merge: bool  # an engine gets all weights, with the adapter merged into them


def sampler_sizes(cfg: DictConfig, device: Device) -> SamplerSizes:
    """What `rollout.sampler` sets; a setting that the sampler does not have is 0. Nodes that sample are as those that train."""
    sampler, kind = cfg.rollout.sampler, "none" if cfg.algo.train_sampler else kind_of_sampler(cfg)
    gpus = cfg.trainer.devices if device.kind == "gpu" else 0
    colocate, nodes, each = (sampler.get(name, 0) for name in ("colocate", "server_nodes", "gpus_per_server"))
    if colocate:
        servers = max(1, gpus)  # `commands.samplers`
    elif nodes:
        servers = nodes * max(1, gpus // each)
    else:
        servers = len(sampler.get("servers") or ())
    return SamplerSizes(
        kind=kind,
        max_sequences=sampler.max_sequences,
        memory_share=sampler.get("memory_share", 0.0),
        sleeps=bool(gpus and (colocate or sampler.get("sleep", False))),
        servers=servers,
        gpus_each=each if nodes and gpus else 1,
        beside=kind == "vllm" or bool(kind == "vllm_server" and colocate),
        cpu_cache=sampler.get("cpu_cache_gb", 0.0) * GIB,
        transfer="folder" if colocate else sampler.get("transfer", "auto"),
        merge=sampler.get("merge", False),
    )


def kind_of_sampler(cfg: DictConfig) -> str:
    """`hf`, `vllm` or `vllm_server`."""
    name = cfg.rollout.sampler._target_.rpartition(".")[2]
    return {"HFSampler": "hf", "VLLMSampler": "vllm"}.get(name, "vllm_server")
